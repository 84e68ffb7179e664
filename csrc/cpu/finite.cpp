// Whether all of many numbers are finite, through ctypes: a look at the parameters of a small call must not cost as much
// as the call, which calls of PyTorch would.
#include <cstdint>

namespace {

// The word of a number that has its exponent is the last of its `words`.
template <int words>
bool all_finite(const uint32_t* data, int64_t count, uint32_t exponent) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found |= (data[i * words + words - 1] & exponent) == exponent;
  return found == 0;
}

}  // namespace

// Contiguous numbers of 4 or 8 bytes each.
extern "C" __attribute__((visibility("default"))) bool fastflow_all_finite(const uint32_t* data, int64_t count,
                                                                           int64_t bytes) {
  return bytes == 8 ? all_finite<2>(data, count, 0x7ff00000u) : all_finite<1>(data, count, 0x7f800000u);
}
