// Weights' matrices as the products of products.h read them.
#pragma once

#include "products.h"

namespace fastflow::FASTFLOW_ISA {

// The number of the matrix's row, or column, at this place; -1 for one that only fills.
inline int64_t feature_at(const Features& features, int64_t place) {
  const int64_t index = place % features.pitch;
  return index < features.size ? place / features.pitch * features.size + index : -1;
}

// A matrix, or its transpose: what it makes outputs of inputs.
struct Packing {
  const char* weight;
  Features outputs, inputs;
  int64_t output_stride, input_stride;
  void* packed;
};

template <class P>
class Panel {
  using T = typename P::T;
  using Input = typename P::Input;
  using Weight = typename P::Weight;
  // What a multiplication takes of an output's weights has the bits of a lane.
  static constexpr bool in_lanes = sizeof(Weight) * P::fold == sizeof(T);

 public:
  Panel(const Packing& packing, int64_t first) : of_(packing), inputs_(depth<P>(packing.inputs)) {
    to_ = static_cast<Input*>(packing.packed) + first * inputs_;
    for (int64_t n = 0; n < panel<T>; ++n) {
      const int64_t output = feature_at(packing.outputs, first + n);
      const auto* const weight = reinterpret_cast<const Weight*>(packing.weight);
      from_[n] = output < 0 ? nullptr : weight + output * packing.output_stride;
    }
  }

  void pack() const {
    int64_t k = 0;
    if constexpr (in_lanes) {
      if (of_.input_stride == 1 && of_.inputs.parts == 1) k = by_transposition();
    }
    for (; k < inputs_; ++k) {
      const int64_t input = feature_at(of_.inputs, k);
      Input* const to = to_ + k / P::fold * P::fold * panel<T> + k % P::fold;
      for (int64_t n = 0; n < panel<T>; ++n) {
        const bool fills = input < 0 || from_[n] == nullptr;
        to[n * P::fold] = fills ? Input{} : P::pack(from_[n][input * of_.input_stride]);
      }
    }
  }

 private:
  // The number of inputs done.
  int64_t by_transposition() const {
    const int64_t lanes = of_.inputs.size / P::fold;
    for (int64_t lane = 0; lane < lanes; lane += width<T>) {
      for (int64_t half = 0; half < panel<T>; half += width<T>) {
        Vec<T> block[width<T>];
        for (int64_t n = 0; n < width<T>; ++n) {
          block[n] = Vec<T>{};
          if (const Weight* const from = from_[half + n]; from != nullptr) {
            block[n] = load_part(reinterpret_cast<const T*>(from + lane * P::fold), lanes - lane);
            // The next panel's: so many rows at once the hardware does not follow.
            __builtin_prefetch(from + panel<T> * of_.output_stride + lane * P::fold);
          }
        }
        transpose<T>(block);
        T* const to = reinterpret_cast<T*>(to_) + lane * panel<T> + half;
        for (int64_t n = 0; n < width<T> && n < lanes - lane; ++n) store(to + n * panel<T>, block[n]);
      }
    }
    return lanes * P::fold;
  }

  const Packing& of_;
  const int64_t inputs_;
  Input* to_;
  const Weight* from_[panel<T>];
};

// 32 outputs of one of the layers' matrices and their transposes, which follow each other.
template <class P>
void pack_unit(const Linear* layer, int layers, int64_t unit) {
  for (const Linear* each = layer; each < layer + layers; ++each) {
    const Operand& weight = each->weight;
    const Packing straight = {weight.data, each->out, each->in, weight.row_stride, weight.stride[0], each->packed};
    const Packing transposed = {weight.data, each->in, each->out, weight.stride[0], weight.row_stride, each->transposed};
    for (const Packing* packing : {&straight, &transposed}) {
      const int64_t units = packing->packed == nullptr ? 0 : places(packing->outputs) / 32;
      if (unit < units) {
        for (int64_t first = 32 * unit; first < 32 * unit + 32; first += panel<typename P::T>) {
          Panel<P>(*packing, first).pack();
        }
        return;
      }
      unit -= units;
    }
  }
}

}  // namespace fastflow::FASTFLOW_ISA
