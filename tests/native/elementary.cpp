// The vector functions of one instruction set over arrays of a multiple of 16 elements, and the conversions of storage.
#include "elementary.h"

#include "convert.h"

using namespace fastflow::FASTFLOW_ISA;

template <class T, class Function>
void over_vectors(const T* from, T* to, int64_t count, Function function) {
  for (int64_t i = 0; i < count; i += width<T>) store<T>(to + i, function(load(from + i)));
}

#define FUNCTION(name, T, of_x)                                                                      \
  extern "C" void name##_##T(const T* from, T* to, int64_t count) {                                  \
    over_vectors<T>(from, to, count, [](Vec<T> x) -> Vec<T> { return of_x; });                       \
  }
#define FUNCTIONS(T)                                                                                 \
  FUNCTION(exp, T, fastflow::FASTFLOW_ISA::exp<T>(x))                                                \
  FUNCTION(exp_of_minus_absolute, T, exp_of_minus_absolute<T>(x))                                    \
  FUNCTION(log, T, fastflow::FASTFLOW_ISA::log(split<T>(x)))                                         \
  FUNCTION(log1p, T, fastflow::FASTFLOW_ISA::log1p<T>(x))                                            \
  FUNCTION(expm1, T, fastflow::FASTFLOW_ISA::expm1<T>(x))                                            \
  FUNCTION(log1p_ratio, T, log1p_ratio<T>(x))                                                        \
  FUNCTION(tanh, T, fastflow::FASTFLOW_ISA::tanh<T>(x))                                              \
  FUNCTION(atan, T, fastflow::FASTFLOW_ISA::atan<T>(x))
FUNCTIONS(float)
FUNCTIONS(double)

#define STORAGE(dtype)                                                                               \
  extern "C" void widen_##dtype(const char* from, float* to, int64_t count, int64_t stride) {        \
    pack(to, from, fastflow::dtype, Box{1, count, 0, stride});                                       \
  }                                                                                                  \
  extern "C" void narrow_##dtype(const float* from, char* to, int64_t count, int64_t stride) {       \
    unpack(to, from, fastflow::dtype, Box{1, count, 0, stride});                                     \
  }
STORAGE(bfloat16)
STORAGE(float16)
