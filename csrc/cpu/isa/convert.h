// Strided storage of any dtype to and from the dense buffers that kernels compute on.
#pragma once

#include <type_traits>

#include "cpu/row_op.h"
#include "simd.h"

namespace fastflow::FASTFLOW_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

inline uint8_t widen(uint8_t value) { return value; }
inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return bit_cast<float>(uint32_t{value.bits} << 16); }

// To nearest, ties to even.
inline void narrow(float& to, double from) { to = static_cast<float>(from); }
inline void narrow(double& to, double from) { to = from; }
inline void narrow(BFloat16& to, float from) {
  const uint32_t bits = bit_cast<uint32_t>(from), even = bits >> 16 & 1;
  to.bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : (bits + 0x7fffu + even) >> 16;
}
#if defined(__F16C__)
inline float widen(Float16 value) { return _cvtsh_ss(value.bits); }
inline void narrow(Float16& to, float from) { to.bits = _cvtss_sh(from, _MM_FROUND_TO_NEAREST_INT); }
#if defined(__AVX512F__)
FASTFLOW_INLINE Vec<float> load(const Float16* from) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }
FASTFLOW_INLINE void store(Float16* to, Vec<float> v) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#else
FASTFLOW_INLINE Vec<float> load(const Float16* from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)); }
FASTFLOW_INLINE void store(Float16* to, Vec<float> v) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// Dense runs: the compiler vectorises the integer code of other conversions by itself, but not these instructions.
inline void widen(float* to, const Float16* from, int64_t count) {
  int64_t i = 0;
  for (; i + width<float> <= count; i += width<float>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = widen(from[i]);
}
inline void narrow(Float16* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + width<float> <= count; i += width<float>) store(to + i, load(from + i));
  for (; i < count; ++i) narrow(to[i], from[i]);
}
#else
inline float widen(Float16 value) {
  // The multiplication moves the exponent bias and normalises subnormals.
  const uint32_t size = bit_cast<uint32_t>(bit_cast<float>((value.bits & 0x7fffu) << 13) * 0x1p112f);
  const uint32_t special = size >= 0x47800000u ? 0x7f800000u : 0;
  return bit_cast<float>(size | special | (value.bits & 0x8000u) << 16);
}
inline void narrow(Float16& to, float from) {
  const uint32_t bits = bit_cast<uint32_t>(from), size = bits & 0x7fffffffu, even = size >> 13 & 1;
  const uint32_t aligner = 0x3f000000u;  // 0.5: adding it leaves a subnormal's bits, rounded, at the bottom
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(size) + bit_cast<float>(aligner)) - aligner;
  const uint32_t normal = (size + 0xc8000fffu + even) >> 13;
  uint32_t half = size < 0x38800000u ? subnormal : normal;
  half = size >= 0x47800000u ? 0x7c00u : half;
  half = size > 0x7f800000u ? 0x7e00u : half;
  to.bits = half | (bits >> 16 & 0x8000u);
}
#endif

template <class T, class From>
inline void widen(T* to, const From* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}
template <class To, class T>
inline void narrow(To* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) narrow(to[i], from[i]);
}

// The even elements of interleaved ones; nothing beyond the last of them is read or written.
template <class T, class From>
void widen_even(T* to, const From* from, int64_t count) {
  if constexpr (std::is_same_v<From, T> && std::is_floating_point_v<T>) {
    for (int64_t i = 0; i < count; i += width<T>) {
      const int64_t left = 2 * (count - i) - 1;
      const Vec<T> low = load_part(from + 2 * i, left), high = load_part(from + 2 * i + width<T>, left - width<T>);
      store_part(to + i, even_of(low, high), count - i);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = widen(from[2 * i]);
  }
}
template <class To, class T>
void narrow_even(To* to, const T* from, int64_t count) {
  if constexpr (std::is_same_v<To, T>) {
    for (int64_t i = 0; i < count; i += width<T>) {
      const int64_t left = 2 * (count - i) - 1;
      T *const low = to + 2 * i, *const high = low + width<T>;
      const Spread<T> both =
          spread_among(load_part(from + i, count - i), load_part<T>(low, left), load_part<T>(high, left - width<T>));
      store_part(low, both.low, left);
      store_part(high, both.high, left - width<T>);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) narrow(to[2 * i], from[i]);
  }
}

struct Box {
  int64_t outer, inner, outer_stride, inner_stride;
};

template <class T, class From>
void pack(T* to, const From* from, const Box& box) {
  for (int64_t o = 0; o < box.outer; ++o, to += box.inner, from += box.outer_stride) {
    if (box.inner_stride == 1) {
      widen(to, from, box.inner);
    } else if (box.inner_stride == 2) {
      widen_even(to, from, box.inner);
    } else if (box.inner_stride == 0) {
      const T value = widen(*from);
      for (int64_t i = 0; i < box.inner; ++i) to[i] = value;
    } else {
      for (int64_t i = 0; i < box.inner; ++i) to[i] = widen(from[i * box.inner_stride]);
    }
  }
}

template <class T, class To>
void unpack(To* to, const T* from, const Box& box) {
  for (int64_t o = 0; o < box.outer; ++o, from += box.inner, to += box.outer_stride) {
    if (box.inner_stride == 1) {
      narrow(to, from, box.inner);
    } else if (box.inner_stride == 2) {
      narrow_even(to, from, box.inner);
    } else {
      for (int64_t i = 0; i < box.inner; ++i) narrow(to[i * box.inner_stride], from[i]);
    }
  }
}

// Both of two interleaved operands: one by one they would be stores among what has to be loaded first.
template <class T>
void unpack_both(T* to, const T* first, const T* second, const Box& box) {
  for (int64_t o = 0; o < box.outer; ++o, first += box.inner, second += box.inner, to += box.outer_stride) {
    for (int64_t i = 0; i < box.inner; i += width<T>) {
      const int64_t left = box.inner - i;
      const Spread<T> both = zip(load_part(first + i, left), load_part(second + i, left));
      store_part(to + 2 * i, both.low, 2 * left);
      store_part(to + 2 * i + width<T>, both.high, 2 * left - width<T>);
    }
  }
}

template <class T>
void pack(T* to, const char* from, Dtype dtype, const Box& box) {
  switch (dtype) {
    case float64: return pack(to, reinterpret_cast<const double*>(from), box);
    case float32: return pack(to, reinterpret_cast<const float*>(from), box);
    case bfloat16: return pack(to, reinterpret_cast<const BFloat16*>(from), box);
    case float16: return pack(to, reinterpret_cast<const Float16*>(from), box);
    case boolean: return;
  }
}

template <class T>
void unpack(char* to, const T* from, Dtype dtype, const Box& box) {
  switch (dtype) {
    case float64: return unpack(reinterpret_cast<double*>(to), from, box);
    case float32: return unpack(reinterpret_cast<float*>(to), from, box);
    case bfloat16: return unpack(reinterpret_cast<BFloat16*>(to), from, box);
    case float16: return unpack(reinterpret_cast<Float16*>(to), from, box);
    case boolean: return;
  }
}

template <class T>
constexpr Dtype native = sizeof(T) == sizeof(double) ? float64 : float32;

}  // namespace fastflow::FASTFLOW_ISA
