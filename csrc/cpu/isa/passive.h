// Copies the passive elements of rows.
#pragma once

#include <string.h>

#include "cpu/affine_coupling.h"

namespace fastflow::FASTFLOW_ISA {

// memcpy without its call, which short rows would notice.
inline void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (bytes < 64 || bytes > 2048) {
    memcpy(to, from, bytes);
    return;
  }
  struct Line {
    char bytes[64];
  } line;
  for (int64_t at = 0; at < bytes; at += 64) {
    const int64_t place = at + 64 <= bytes ? at : bytes - 64;
    memcpy(&line, from + place, 64);
    memcpy(to + place, &line, 64);
  }
}

template <class Element>
void copy_strided(char* to, const char* from, int64_t count, int64_t to_stride, int64_t from_stride) {
  auto* target = reinterpret_cast<Element*>(to);
  auto* source = reinterpret_cast<const Element*>(from);
  for (int64_t i = 0; i < count; ++i) target[i * to_stride] = source[i * from_stride];
}

inline void copy_run(char* to, const char* from, int64_t count, int64_t to_stride, int64_t from_stride, int64_t bytes) {
  if (to_stride == 1 && from_stride == 1) return copy_bytes(to, from, count * bytes);
  if (bytes == 2) return copy_strided<uint16_t>(to, from, count, to_stride, from_stride);
  if (bytes == 4) return copy_strided<uint32_t>(to, from, count, to_stride, from_stride);
  copy_strided<uint64_t>(to, from, count, to_stride, from_stride);
}

inline void copy_row(const Copy& copy, int64_t row) {
  const Operand &from = copy.operand[0], &to = copy.operand[1];
  const int64_t bytes = bytes_of[to.dtype];
  const char* const source = from.data + row * from.row_stride * bytes;
  char* const target = to.data + row * to.row_stride * bytes;
  int64_t runs = 1;
  for (int d = 1; d < copy.dims; ++d) runs *= copy.size[d];
  for (int64_t run = 0; run < runs; ++run) {
    int64_t from_offset = 0, to_offset = 0, rest = run;
    for (int d = 1; d < copy.dims; ++d) {
      const int64_t index = rest % copy.size[d];
      from_offset += index * from.stride[d];
      to_offset += index * to.stride[d];
      rest /= copy.size[d];
    }
    copy_run(target + to_offset * bytes, source + from_offset * bytes, copy.size[0], to.stride[0], from.stride[0], bytes);
  }
}

inline void copy_passive(const AffineCoupling& c, int64_t row) {
  for (int n = 0; n < c.copies; ++n) copy_row(c.copy[n], row);
}

}  // namespace fastflow::FASTFLOW_ISA
