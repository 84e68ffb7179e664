// What lets one source run on a GPU and, for tests, on the host.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FASTFLOW_HOST_DEVICE __host__ __device__
#define FASTFLOW_DEVICE __device__ __forceinline__
#define FASTFLOW_UNROLL _Pragma("unroll")
#define FASTFLOW_ROLLED _Pragma("unroll 1")
#else
#define FASTFLOW_HOST_DEVICE
#define FASTFLOW_DEVICE inline
#define FASTFLOW_UNROLL
#define FASTFLOW_ROLLED
#endif

namespace fastflow {

template <class To, class From>
FASTFLOW_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a value has as many bits after as before");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Blocks of a launch.
struct Grid {
  int64_t x, y = 1, z = 1;
};

// The value, of which the compiler knows nothing: it would carry every address made of a loop's index through the loop,
// in registers that it has not got.
FASTFLOW_DEVICE int64_t unforeseen(int64_t value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+l"(value));
#endif
  return value;
}

}  // namespace fastflow
