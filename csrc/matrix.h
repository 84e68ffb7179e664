// Matrices of any strides and storage dtype, read and written a few adjacent columns at a time, computed with in T.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace fastflow {

enum class Storage : int32_t { float32, float64, bfloat16, float16 };

inline int64_t bytes_of(Storage storage) {
  return storage == Storage::float32 ? 4 : storage == Storage::float64 ? 8 : 2;
}

// N adjacent numbers, moved at most 16 bytes at a time.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  T at[N];
};

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTFLOW_HOST_DEVICE inline float widen(float x) { return x; }
FASTFLOW_HOST_DEVICE inline double widen(double x) { return x; }
FASTFLOW_HOST_DEVICE inline float widen(BFloat16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
FASTFLOW_HOST_DEVICE inline void narrow(float x, float& to) { to = x; }
FASTFLOW_HOST_DEVICE inline void narrow(double x, double& to) { to = x; }
FASTFLOW_HOST_DEVICE inline void narrow(float x, BFloat16& to) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // to the nearest, ties to even
  to.bits = uint16_t((x == x ? rounded : bits | 0x400000) >> 16);
}
#ifdef __CUDACC__
FASTFLOW_HOST_DEVICE inline float widen(Float16 x) { return __half2float(bits_as<__half>(x)); }
FASTFLOW_HOST_DEVICE inline void narrow(float x, Float16& to) { to = bits_as<Float16>(__float2half_rn(x)); }
#else
inline float widen(Float16 x) { return static_cast<float>(bits_as<_Float16>(x)); }
inline void narrow(float x, Float16& to) { to = bits_as<Float16>(static_cast<_Float16>(x)); }
#endif

// Strides are in elements, 0 where one number stands for many.
template <class T>
struct Strided {
  const T* data;  // nullptr: absent
  int64_t row, column;

  FASTFLOW_HOST_DEVICE T at(int64_t i, int64_t j = 0) const { return data[i * row + j * column]; }
  Strided from_row(int64_t i) const { return {data == nullptr ? nullptr : data + i * row, row, column}; }
};

template <class T>
struct Matrix {
  const void* data;
  Storage storage;
  bool adjacent;  // four columns lie side by side, aligned to be read at once
  int64_t rows, columns, row, column;

  // Rows first, first + step, ..., of each the N columns from `column` on, a multiple of N. Zeros outside. All are
  // asked for before the first is waited for.
  template <int N, int Count>
  FASTFLOW_DEVICE void load(int64_t first, int step, int64_t from, Vector<T, N> (&to)[Count]) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      load_as<double>(first, step, from, to);
    } else if (storage == Storage::float32) {
      load_as<float>(first, step, from, to);
    } else if (storage == Storage::bfloat16) {
      load_as<BFloat16>(first, step, from, to);
    } else {
      load_as<Float16>(first, step, from, to);
    }
  }

  template <class S, int N, int Count>
  FASTFLOW_DEVICE void load_as(int64_t first, int step, int64_t from, Vector<T, N> (&to)[Count]) const {
    Vector<S, N> stored[Count] = {};
    const S* here = static_cast<const S*>(data) + first * row + from * column;
    const int64_t stride = step * row;
    if (adjacent && from + N <= columns) {
      FASTFLOW_UNROLL for (int n = 0; n < Count; ++n, here += stride) {
        if (first + n * step < rows) stored[n] = *reinterpret_cast<const Vector<S, N>*>(here);
      }
    } else {
      FASTFLOW_UNROLL for (int n = 0; n < Count; ++n, here += stride) {
        if (first + n * step >= rows) continue;
        FASTFLOW_UNROLL for (int m = 0; m < N; ++m) stored[n].at[m] = from + m < columns ? here[m * column] : S{};
      }
    }
    FASTFLOW_UNROLL for (int n = 0; n < Count; ++n) {
      FASTFLOW_UNROLL for (int m = 0; m < N; ++m) to[n].at[m] = widen(stored[n].at[m]);
    }
  }

  Matrix row_range(int64_t start, int64_t count) const {
    Matrix part = *this;
    part.data = static_cast<const char*>(data) + start * row * bytes_of(storage);
    part.rows = count;
    return part;
  }
};

template <class T>
Matrix<T> matrix(const void* data, Storage storage, int64_t rows, int64_t columns, int64_t row, int64_t column) {
  const uintptr_t alignment = storage == Storage::float32 || storage == Storage::float64 ? 16 : 8;
  const bool adjacent = column == 1 && row % 4 == 0 && reinterpret_cast<uintptr_t>(data) % alignment == 0;
  return {data, storage, adjacent, rows, columns, row, column};
}

// A contiguous matrix that is written: N columns of a row, from `column` on, a multiple of N.
template <class T>
struct Result {
  void* data;
  Storage storage;
  int64_t columns;

  Result from_row(int64_t i) const {
    return {static_cast<char*>(data) + i * columns * bytes_of(storage), storage, columns};
  }

  template <int N>
  FASTFLOW_DEVICE void store(int64_t i, int64_t from, const Vector<T, N>& value) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      store_as<double>(i, from, value);
    } else if (storage == Storage::float32) {
      store_as<float>(i, from, value);
    } else if (storage == Storage::bfloat16) {
      store_as<BFloat16>(i, from, value);
    } else {
      store_as<Float16>(i, from, value);
    }
  }

  template <class S, int N>
  FASTFLOW_DEVICE void store_as(int64_t i, int64_t from, const Vector<T, N>& value) const {
    Vector<S, N> stored;
    FASTFLOW_UNROLL for (int m = 0; m < N; ++m) narrow(value.at[m], stored.at[m]);
    S* const to = static_cast<S*>(data) + i * columns + from;
    if (columns % N == 0) {  // a fresh tensor is aligned
      *reinterpret_cast<Vector<S, N>*>(to) = stored;
    } else {
      FASTFLOW_UNROLL for (int m = 0; m < N; ++m) {
        if (from + m < columns) to[m] = stored.at[m];
      }
    }
  }
};

}  // namespace fastflow
