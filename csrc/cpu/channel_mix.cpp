// channel_mix and its backward for dispatch key CPU.
//
// Moved for an element in float32: forward 8 bytes, backward 12 (grad_z and x in; grad_x out). Computed, for C channels:
// forward C fused multiply-adds an element, backward 2 C. From C = 8 on they decide: one Zen 4 core does 16 of them in a
// cycle.
#include "channel_mix.h"

#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace fastflow {
namespace {

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
  explicit Layout(const Tensor& x) : rows_(x.size(0)), pixels_(pixels_of(x)) {
    channels_last_ = pixels_ == 1 || has_channels_last(x);
  }

  Pixels read(const Tensor& x, const std::optional<Tensor>& rest) {
    if (!rest) return write(readable(x), rest);
    return write(readable(x), readable(*rest));
  }

  Pixels write(const Tensor& z, const std::optional<Tensor>& rest) const {
    return {dtype_of(z), {channels(z), rest ? channels(*rest) : Channels{}}};
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
    const int64_t stride = pixel_stride(x);
    if (channels_last_ ? (x.stride(1) == 1 || x.size(1) == 1) && stride >= 0 : stride == 1) return x;
    copies_.push_back(allocate(x.sizes(), native_dtype(x), channels_last_));
    return torch::stable::copy_(copies_.back(), x);
  }

  Channels channels(const Tensor& x) const {
    return {static_cast<char*>(x.data_ptr()), x.stride(0), channels_last_ ? 1 : x.stride(1), pixel_stride(x),
            static_cast<int>(x.size(1))};
  }

  // All rows as one where every pixel is as far from the next.
  void merge_rows(ChannelMix& op) const {
    Channels* const parts[] = {&op.x.part[0], &op.x.part[1],     &op.z.part[0],
                               &op.z.part[1], &op.saved.part[0], &op.saved.part[1]};
    for (Channels* part : parts) {
      if (pixels_ > 1 && part->row_stride != pixels_ * part->pixel_stride) return;
    }
    for (Channels* part : parts) part->pixel_stride = part->row_stride / pixels_;
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

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, std::optional<Tensor> rest, const Tensor& matrix,
                                           std::optional<Tensor> center, std::optional<Tensor> shift, const Tensor& own,
                                           std::optional<Tensor> log_det, int64_t split) {
  const int64_t channels = matrix.size(0);
  Tensor z = allocate_channels(x, split ? split : channels);
  Tensor z_rest = split ? allocate_channels(x, channels - split) : allocate({0}, native_dtype(x));
  Tensor total = allocate_log_det(x);
  dtype_of(x) == float64 ? add_own<double>(total, own, log_det) : add_own<float>(total, own, log_det);
  if (x.numel() == 0) return {z, z_rest, total};
  const Tensor entries = torch::stable::contiguous(matrix), dense_center = dense(center), dense_shift = dense(shift);
  Layout layout(x);
  const Pixels to = split ? layout.write(z, z_rest) : layout.write(z, {});
  ChannelMix op = layout.describe(entries, layout.read(x, rest), to, {});
  if (center) op.center = dense_center.data_ptr();
  if (shift) op.shift = dense_shift.data_ptr();
  const auto kernel = FASTFLOW_KERNEL(channel_mix);
  torch::stable::parallel_for(0, layout.tiles(op), tiles_a_thread(op),
                              [&](int64_t first, int64_t last) { kernel(op, first, last); });
  return {z, z_rest, total};
}

template <class T>
void narrow(const double* from, Tensor& to) {
  std::copy_n(from, to.numel(), static_cast<T*>(to.data_ptr()));
}

// Sums the parameters' gradients over fixed parts of the tiles: the same bits on any number of threads.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_z, std::optional<Tensor> grad_rest,
                                                    const Tensor& x, std::optional<Tensor> rest, const Tensor& matrix,
                                                    std::optional<Tensor> center) {
  const int64_t channels = matrix.size(0), sums_of_part = channels * (channels + 1);
  Tensor grad_x = allocate_channels(x, x.size(1));
  Tensor grad_x_rest = rest ? allocate_channels(x, rest->size(1)) : allocate({0}, native_dtype(x));
  Tensor grad_matrix = allocate(matrix.sizes(), native_dtype(matrix));
  Tensor grad_shift = allocate(matrix.sizes().slice(0, 1), native_dtype(matrix));
  if (x.numel() == 0) {
    return {grad_x, grad_x_rest, torch::stable::zero_(grad_matrix), torch::stable::zero_(grad_shift)};
  }
  const Tensor entries = torch::stable::contiguous(matrix), dense_center = dense(center);
  Layout layout(x);
  const Pixels to = rest ? layout.write(grad_x, grad_x_rest) : layout.write(grad_x, {});
  ChannelMix op = layout.describe(entries, layout.read(grad_z, grad_rest), to, layout.read(x, rest));
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
