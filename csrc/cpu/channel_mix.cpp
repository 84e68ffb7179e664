// channel_mix and its backward for dispatch key CPU.
//
// Moved for an element in float32: forward 8 bytes, backward 12 (grad_z and x in; grad_x out). Computed, for C channels:
// forward C fused multiply-adds an element, backward 2 C. From C = 8 on they decide: one Zen 4 core does 16 of them in a
// cycle. Measured (benchmarks/records/amd-epyc-20261121T200934Z.json): 256 x 24 x 14 x 14 forward, log|det W| and the call
// included, 812 us on one such core, 71 GFLOP/s.
#include "channel_mix.h"

#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fastflow {
namespace {

// `squeeze` of the schema: positive, x is squeezed as it is read; negative, z is un-squeezed as it is written.
constexpr int64_t none = 0, by_position = 1;  // 2: by channel

int64_t pixels_of(const Tensor& x) {
  int64_t pixels = 1;
  for (int64_t d = 2; d < x.dim(); ++d) pixels *= x.size(d);
  return pixels;
}

// The stride from a pixel to the next; -1 where they have none in common.
int64_t pixel_stride(const Tensor& x) {
  int64_t stride = 0, next = 0;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    if (x.size(d) == 1) continue;
    if (stride == 0) stride = x.stride(d);
    if (next != 0 && x.stride(d) != next) return -1;
    next = x.stride(d) * x.size(d);
  }
  return stride;
}

// Channels last or pixels side by side, one of the two for every tensor of a call; one that has neither is copied.
class Layout {
 public:
  Layout(const Tensor& x, int64_t squeeze) : rows_(x.size(0)), pixels_(squeeze > 0 ? pixels_of(x) / 4 : pixels_of(x)) {
    channels_last_ = squeeze == none && (pixels_ == 1 || has_channels_last(x));
  }

  Pixels read(const Tensor& x, const std::optional<Tensor>& rest) {
    if (!rest) return write(readable(x), rest);
    return write(readable(x), readable(*rest));
  }

  Pixels write(const Tensor& z, const std::optional<Tensor>& rest) const {
    Pixels pixels = {dtype_of(z), {channels(z, 0)}};
    if (rest) pixels.part[1] = channels(*rest, static_cast<int>(z.size(1)));
    return pixels;
  }

  // A tensor whose blocks of 2 x 2 pixels are channels here.
  Pixels squeezed(const Tensor& x, int64_t squeeze) const {
    Pixels pixels = {dtype_of(x), {}};
    const int count = static_cast<int>(x.size(1));
    const bool in_runs = squeeze == by_position || squeeze == -by_position;
    for (int n = 0; n < 4; ++n) {
      char* const first = static_cast<char*>(x.data_ptr()) +
                          (n / 2 * x.stride(2) + n % 2 * x.stride(3)) * bytes_of[pixels.dtype];
      pixels.part[n] = {first, x.stride(0), x.stride(1), 2 * x.stride(3), count, in_runs ? n * count : n,
                        in_runs ? 1 : 4, x.size(3) / 2, 2 * x.stride(2)};
    }
    return pixels;
  }

  ChannelMix describe(const Tensor& matrix, const Pixels& x, const Pixels& z, const Pixels& saved) {
    ChannelMix op = {};
    op.in_double = z.dtype == float64;
    op.channels_last = channels_last_;
    op.channels = static_cast<int>(matrix.size(0));
    op.x = x;
    op.z = z;
    op.saved = saved;
    op.matrix = matrix.data_ptr();
    op.pixels = pixels_;
    if (channels_last_) merge_rows(op);
    op.tile = tile_capacity / ((op.channels + 15) / 16 * 16);
    op.tiles = 1 + (op.pixels - 1) / op.tile;
    return op;
  }

  int64_t tiles(const ChannelMix& op) const { return rows_ * pixels_ / op.pixels * op.tiles; }

 private:
  Tensor readable(const Tensor& x) {
    const int64_t stride = pixels_ == 1 ? 1 : pixel_stride(x);
    if (channels_last_ ? (x.stride(1) == 1 || x.size(1) == 1) && stride >= 0 : stride == 1) return x;
    copies_.push_back(allocate(x.sizes(), native_dtype(x), channels_last_));
    return torch::stable::copy_(copies_.back(), x);
  }

  Channels channels(const Tensor& x, int first) const {
    return {static_cast<char*>(x.data_ptr()), x.stride(0), channels_last_ ? 1 : x.stride(1), pixel_stride(x),
            static_cast<int>(x.size(1)), first, 1, 0, 0};
  }

  // All rows as one where every pixel is as far from the next.
  void merge_rows(ChannelMix& op) const {
    for (const Pixels* each : {&op.x, &op.z, &op.saved}) {
      for (const Channels& part : each->part) {
        if (pixels_ > 1 && part.row_stride != pixels_ * part.pixel_stride) return;
      }
    }
    for (Pixels* each : {&op.x, &op.z, &op.saved}) {
      for (Channels& part : each->part) part.pixel_stride = part.row_stride / pixels_;
    }
    op.pixels = rows_ * pixels_;
  }

  int64_t rows_, pixels_;
  bool channels_last_;
  std::vector<Tensor> copies_;
};

// A thread's share is worth its start: so many numbers, or as much arithmetic.
int64_t tiles_a_thread(const ChannelMix& op) {
  return std::max<int64_t>(1, grain / (op.channels * std::min(op.tile, op.pixels) * (1 + op.channels / 16)));
}

Tensor dense(const std::optional<Tensor>& value) { return value ? torch::stable::contiguous(*value) : Tensor(); }

template <class T>
void add_own(Tensor& total, const Tensor& own, const std::optional<Tensor>& log_det) {
  const T value = *static_cast<const T*>(own.data_ptr());
  const T* const running = log_det ? static_cast<const T*>(log_det->data_ptr()) : nullptr;
  const int64_t stride = log_det ? log_det->stride(0) : 0;
  T* const to = static_cast<T*>(total.data_ptr());
  for (int64_t row = 0; row < total.size(0); ++row) to[row] = value + (running ? running[row * stride] : 0);
}

// Squeezing gives, and un-squeezing takes, four times the channels; both lay z out with its pixels side by side.
Tensor allocate_result(const Tensor& x, int64_t channels, int64_t squeeze) {
  if (squeeze == none) return allocate_channels(x, channels);
  const bool squeezes = squeeze > 0;
  return allocate({x.size(0), squeezes ? channels : channels / 4, squeezes ? x.size(2) / 2 : 2 * x.size(2),
                   squeezes ? x.size(3) / 2 : 2 * x.size(3)}, native_dtype(x));
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, std::optional<Tensor> rest, const Tensor& matrix,
                                           std::optional<Tensor> center, std::optional<Tensor> shift, const Tensor& own,
                                           std::optional<Tensor> log_det, int64_t split, int64_t squeeze) {
  const int64_t channels = matrix.size(0);
  Tensor z = allocate_result(x, split ? split : channels, squeeze);
  Tensor z_rest = split ? allocate_result(x, channels - split, squeeze) : allocate({0}, native_dtype(x));
  Tensor total = allocate_log_det(x);
  dtype_of(x) == float64 ? add_own<double>(total, own, log_det) : add_own<float>(total, own, log_det);
  if (x.numel() == 0) return {z, z_rest, total};
  const Tensor entries = torch::stable::contiguous(matrix), dense_center = dense(center), dense_shift = dense(shift);
  Layout layout(x, squeeze);
  const Pixels from = squeeze > 0 ? layout.squeezed(x, squeeze) : layout.read(x, rest);
  const Pixels to = squeeze < 0 ? layout.squeezed(z, squeeze)
                    : split     ? layout.write(z, z_rest) : layout.write(z, {});
  ChannelMix op = layout.describe(entries, from, to, {});
  if (center) op.center = dense_center.data_ptr();
  if (shift) op.shift = dense_shift.data_ptr();
  const auto kernel = FASTFLOW_KERNEL(channel_mix);
  torch::stable::parallel_for(0, layout.tiles(op), tiles_a_thread(op),
                              [&](int64_t first, int64_t last) { kernel(op, first, last); });
  return {z, z_rest, total};
}

Tensor allocate_grad(const Tensor& x, int64_t channels, int64_t squeeze) {
  if (squeeze == none) return allocate_channels(x, channels);
  return allocate({x.size(0), channels, x.size(2), x.size(3)}, native_dtype(x));
}

template <class T>
void narrow(const double* from, Tensor& to) {
  std::copy_n(from, to.numel(), static_cast<T*>(to.data_ptr()));
}

// Sums the parameters' gradients over fixed parts of the tiles: the same bits on any number of threads.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_z, std::optional<Tensor> grad_rest,
                                                    const Tensor& x, std::optional<Tensor> rest, const Tensor& matrix,
                                                    std::optional<Tensor> center, int64_t squeeze) {
  const int64_t channels = matrix.size(0), sums_of_part = channels * (channels + 1);
  Tensor grad_x = allocate_grad(x, x.size(1), squeeze);
  Tensor grad_x_rest = rest ? allocate_grad(x, rest->size(1), squeeze) : allocate({0}, native_dtype(x));
  Tensor grad_matrix = allocate(matrix.sizes(), native_dtype(matrix));
  Tensor grad_shift = allocate(matrix.sizes().slice(0, 1), native_dtype(matrix));
  if (x.numel() == 0) {
    return {grad_x, grad_x_rest, torch::stable::zero_(grad_matrix), torch::stable::zero_(grad_shift)};
  }
  const Tensor entries = torch::stable::contiguous(matrix), dense_center = dense(center);
  Layout layout(x, squeeze);
  const Pixels from = squeeze < 0 ? layout.squeezed(grad_z, squeeze) : layout.read(grad_z, grad_rest);
  const Pixels saved = squeeze > 0 ? layout.squeezed(x, squeeze) : layout.read(x, rest);
  const Pixels to = squeeze > 0 ? layout.squeezed(grad_x, squeeze)
                    : rest      ? layout.write(grad_x, grad_x_rest) : layout.write(grad_x, {});
  ChannelMix op = layout.describe(entries, from, to, saved);
  if (center) op.center = dense_center.data_ptr();
  const int64_t tiles = layout.tiles(op);
  const int64_t part_tiles = std::max(8 * tiles_a_thread(op), 1 + (tiles - 1) / 256), parts = 1 + (tiles - 1) / part_tiles;
  std::vector<double> sums(parts * sums_of_part);
  const auto kernel = FASTFLOW_KERNEL(channel_mix_backward);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    ChannelMix own = op;
    const int64_t rounded = (channels + 3) / 4 * 4;
    struct alignas(64) Vector { char bytes[64]; };
    std::vector<Vector> lanes(op.channels_last ? 0 : rounded * (rounded + 1));
    own.lanes = lanes.data();
    for (int64_t part = first; part < last; ++part) {
      own.sums = sums.data() + part * sums_of_part;
      kernel(own, part * part_tiles, std::min((part + 1) * part_tiles, tiles));
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t n = 0; n < sums_of_part; ++n) sums[n] += sums[part * sums_of_part + n];
  }
  const double* const of_shift = sums.data() + channels * channels;
  op.in_double ? narrow<double>(sums.data(), grad_matrix) : narrow<float>(sums.data(), grad_matrix);
  op.in_double ? narrow<double>(of_shift, grad_shift) : narrow<float>(of_shift, grad_shift);
  return {grad_x, grad_x_rest, grad_matrix, grad_shift};
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("channel_mix", TORCH_BOX(&fastflow::forward));
  library.impl("channel_mix_backward", TORCH_BOX(&fastflow::backward));
}
