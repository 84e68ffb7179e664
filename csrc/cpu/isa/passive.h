// Copies the passive elements of rows.
#pragma once

#include <string.h>

#include "cpu/row_op.h"

namespace fastflow::FASTFLOW_ISA {

// At least 64 bytes. A tile copies the passive elements of its rows with this: a call of memcpy between the rows would
// cost it the constants that it holds in registers.
inline void copy_line(char* to, const char* from, int64_t bytes) {
  struct Part {
    char bytes[64];
  } part;
  for (int64_t at = 0; at < bytes; at += 64) {
    const int64_t place = at + 64 <= bytes ? at : bytes - 64;
    memcpy(&part, from + place, 64);
    memcpy(to + place, &part, 64);
  }
}

template <class Element>
void copy_strided(char* to, const char* from, int64_t count, int64_t to_stride, int64_t from_stride) {
  auto* target = reinterpret_cast<Element*>(to);
  auto* source = reinterpret_cast<const Element*>(from);
  for (int64_t i = 0; i < count; ++i) target[i * to_stride] = source[i * from_stride];
}

inline void copy_run(char* to, const char* from, int64_t count, int64_t to_stride, int64_t from_stride, int64_t bytes) {
  if (to_stride == 1 && from_stride == 1) {
    memcpy(to, from, count * bytes);
  } else if (bytes == 2) {
    copy_strided<uint16_t>(to, from, count, to_stride, from_stride);
  } else if (bytes == 4) {
    copy_strided<uint32_t>(to, from, count, to_stride, from_stride);
  } else {
    copy_strided<uint64_t>(to, from, count, to_stride, from_stride);
  }
}

inline void copy_row(const Copy& copy, int64_t row) {
  const Operand &from = copy.operand[0], &to = copy.operand[1];
  const int64_t bytes = bytes_of[to.dtype];
  int64_t runs = 1;
  for (int d = 1; d < copy.dims; ++d) runs *= copy.size[d];
  for (int64_t run = 0; run < runs; ++run) {
    int64_t from_offset = row * from.row_stride, to_offset = row * to.row_stride, rest = run;
    for (int d = 1; d < copy.dims; ++d) {
      const int64_t index = rest % copy.size[d];
      from_offset += index * from.stride[d];
      to_offset += index * to.stride[d];
      rest /= copy.size[d];
    }
    copy_run(to.data + to_offset * bytes, from.data + from_offset * bytes, copy.size[0], to.stride[0], from.stride[0],
             bytes);
  }
}

}  // namespace fastflow::FASTFLOW_ISA
