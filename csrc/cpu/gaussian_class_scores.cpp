// gaussian_class_scores and its backward for dispatch key CPU.
//
// Read: z once for every block of classes, backward twice, and the parameters; written: 2 numbers a row. Scratch: a block
// of classes, at most 512 KB unless four of them are more, a number a row, and where z is not contiguous in the dtype of
// arithmetic a tile of it a thread; backward for up to 1024 rows a number a class of the block and, four times, its sums.
// Computed for each row, class and feature: a subtraction and 2 fused or plain multiplications (isotropic: 1); backward a
// subtraction, an addition and 3 multiplications, and those of forward again unless scores were kept. A Zen 4 core does
// 16 multiplications and 16 additions in a cycle: 2 cycles for 16 of them, 3 or 5 backward, are the floor.
#include "gaussian_class_scores.h"

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "scratch.h"
#include "tensors.h"

namespace fastflow {
namespace {

constexpr int64_t block_bytes = 512 * 1024, most_block_classes = 128;
// Backward: rows of a part. Where features are few, several slices make work for as many threads.
int64_t part_rows_of(int64_t features) { return (features < 256 ? 4 : 1) * gaussian_slice_rows; }
int64_t slices_of(int64_t rows) { return (rows + gaussian_slice_rows - 1) / gaussian_slice_rows; }
constexpr int64_t unit_rows = 16;  // of parallel work: no two threads meet in a vector of rows

// Numbers of the dtype of arithmetic, kept until more are asked for.
class Scratch {
 public:
  void* reserve(const GaussianClasses& op, int64_t count) {
    if (first_ == nullptr || count > count_) {
      first_ = memory_.allocate(count * (op.in_double ? 8 : 4));
      count_ = count;
    }
    return first_;
  }

 private:
  Memory memory_;
  char* first_ = nullptr;
  int64_t count_ = 0;
};

Strided strided(const Tensor& values) { return {values.data_ptr(), values.stride(0), values.dim() > 1 ? values.stride(1) : 0}; }
Strided strided(const std::optional<Tensor>& values) { return values ? strided(*values) : Strided{}; }

// Whether a scale of every class may be multiplied by after the differences were squared and summed.
template <class T>
bool moderate(const Tensor& log_scales) {
  const T* const values = static_cast<const T*>(log_scales.data_ptr());
  for (int64_t k = 0; k < log_scales.size(0); ++k) {
    if (!(std::abs(values[k * log_scales.stride(0)]) <= (sizeof(T) == 8 ? 150 : 20))) return false;
  }
  return true;
}

class Classes {
 public:
  Classes(const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior,
          const std::optional<Tensor>& labels, const std::optional<Tensor>& weights) {
    if (labels) labels_ = torch::stable::contiguous(*labels);
    op.in_double = dtype_of(means) == float64;
    op.rows = z.size(0), op.classes = means.size(0), op.features = z.size(1);
    op.z = static_cast<const char*>(z.data_ptr());
    op.z_dtype = dtype_of(z);
    op.z_row = z.stride(0), op.z_feature = z.stride(1);
    op.means = strided(means);
    op.log_scales = strided(log_scales);
    if (log_scales.size(0) == 1) op.log_scales.row = 0;
    if (log_scales.size(1) == 1) op.log_scales.column = 0;
    op.scaled = log_scales.size(1) != 1 || !(op.in_double ? moderate<double>(log_scales) : moderate<float>(log_scales));
    op.log_prior = log_prior.data_ptr();
    op.prior_stride = log_prior.stride(0);
    op.labels = labels ? static_cast<const int64_t*>(labels_.data_ptr()) : nullptr;
    op.weights = strided(weights);
  }

  bool direct() const { return op.z_dtype == (op.in_double ? float64 : float32) && (op.z_feature == 1 || op.features == 1); }

  // Classes of a block; the last may have fewer.
  int64_t block_size() const {
    const int64_t bytes = 2 * padded(op.features) * (op.in_double ? 8 : 4);
    const int64_t most = std::min<int64_t>(block_bytes / bytes, most_block_classes) / 16 * 16;
    return std::min(op.classes, most > 0 ? most : std::max<int64_t>(4, block_bytes / bytes / 4 * 4));
  }

  // Calls run() for every block of classes, whose parameters are there.
  template <class Run>
  void for_each_block(bool differentiates, Run run) {
    const int64_t pitch = padded(op.features), size = block_size();
    const int64_t numbers = padded(size) * pitch;
    op.mean = mean_.reserve(op, numbers);
    op.inverse_scale = inverse_scale_.reserve(op, op.scaled ? numbers : 0);
    if (lane_classes(size) == 0) {
      op.mean_of = op.mean, op.inverse_scale_of = op.inverse_scale;
    } else if (differentiates) {
      op.mean_of = mean_of_.reserve(op, numbers);
      op.inverse_scale_of = inverse_scale_of_.reserve(op, op.scaled ? numbers : 0);
    }
    op.constant = constant_.reserve(op, size);
    op.factor = factor_.reserve(op, size);
    op.rest = rest_.reserve(op, size);
    const auto kernel = FASTFLOW_KERNEL(gaussian_class_block);
    for (op.first_class = 0; op.first_class < op.classes; op.first_class += size) {
      op.block_classes = std::min(size, op.classes - op.first_class);
      op.lane_classes = lane_classes(op.block_classes);
      op.last_block = op.first_class + size >= op.classes;
      if (present_ != op.first_class) {
        torch::stable::parallel_for(0, op.block_classes, std::max<int64_t>(1, grain / (8 * pitch)),
                                    [&](int64_t first, int64_t last) { kernel(op, first, last); });
        present_ = op.first_class;
      }
      run();
    }
  }

  // Calls kernel(op, first_row, last_row) for [first, last), `work` multiplications a row, class and feature.
  template <class Kernel>
  void over_rows_of(int64_t first, int64_t last, int64_t work, Kernel kernel) const {
    const int64_t of_unit = unit_rows * op.block_classes * (16 + op.features * work);  // an exponential takes as many
    torch::stable::parallel_for(0, (last - first + unit_rows - 1) / unit_rows, 1 + 8 * grain / of_unit,
                                [&](int64_t from, int64_t to) {
                                  kernel(first + from * unit_rows, std::min(first + to * unit_rows, last));
                                });
  }

  GaussianClasses op = {};

 private:
  // How many of a block's classes lie in lanes: whole vectors of them, and those beyond unless features in lanes, which
  // end in a sum over lanes, are less work. The same backward: far from the means another order of summation is another
  // score.
  int64_t lane_classes(int64_t classes) const {
    const InstructionSet set = instruction_set();
    const int64_t bytes = set == InstructionSet::avx512 ? 64 : set == InstructionSet::avx2 ? 32 : 16;
    const int64_t lanes = bytes / (op.in_double ? 8 : 4), beyond = classes % lanes;
    return beyond * ((op.features + lanes - 1) / lanes + 1) < op.features ? classes - beyond : classes;
  }

  Tensor labels_;
  int64_t present_ = -1;  // first class of the block whose parameters are there
  Scratch mean_, inverse_scale_, mean_of_, inverse_scale_of_, constant_, factor_, rest_;
};

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& z, const Tensor& means, const Tensor& log_scales,
                                           const Tensor& log_prior, Optional labels, Optional weights, bool with_scores) {
  const int64_t rows = z.size(0), classes = means.size(0);
  const int32_t dtype = native_dtype(means);
  Tensor marginal = allocate({rows}, dtype), picked = allocate({rows}, dtype);
  Tensor scores = with_scores ? allocate({rows, classes}, dtype) : allocate({0}, dtype);
  if (rows == 0) return {marginal, picked, scores};
  Classes all(z, means, log_scales, log_prior, labels, weights);
  GaussianClasses& op = all.op;
  Scratch sum;
  op.marginal = marginal.data_ptr();
  op.picked = picked.data_ptr();
  op.sum = sum.reserve(op, rows);
  op.scores = with_scores ? scores.data_ptr() : nullptr;
  const auto kernel = FASTFLOW_KERNEL(gaussian_class_scores);
  all.for_each_block(false, [&] {
    all.over_rows_of(0, rows, op.scaled ? 2 : 1, [&](int64_t first, int64_t last) {
      GaussianClasses own = op;
      Scratch packed;
      if (!all.direct()) own.packed = packed.reserve(op, 64 * op.features);
      kernel(own, first, last);
    });
  });
  return {marginal, picked, scores};
}

template <class T>
void sum_to(const T* from, int64_t classes, int64_t features, Tensor& to) {
  T* const sums = static_cast<T*>(to.data_ptr());
  const bool by_class = to.size(0) != 1, by_feature = to.size(1) != 1;
  std::vector<double> total(by_feature ? features : 1);
  for (int64_t k = 0; k < classes; ++k) {
    for (int64_t d = 0; d < features; ++d) total[by_feature ? d : 0] += from[k * features + d];
    if (!by_class && k + 1 < classes) continue;
    const int64_t row = by_class ? k * static_cast<int64_t>(total.size()) : 0;
    for (size_t n = 0; n < total.size(); ++n) sums[row + n] = T(total[n]), total[n] = 0;
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& z, const Tensor& means, const Tensor& log_scales, const Tensor& log_prior, Optional labels,
    Optional weights, const Tensor& marginal, Optional scores, Optional grad_marginal, Optional grad_picked,
    Optional grad_scores, bool with_z, bool with_parameters, bool with_weights) {
  const int64_t rows = z.size(0), classes = means.size(0), features = z.size(1);
  const int32_t dtype = native_dtype(means);
  const auto asked = [&](bool with, Sizes sizes, int32_t of) { return with ? allocate(sizes, of) : allocate({0}, of); };
  Tensor grad_z = with_z ? allocate({rows, features}, native_dtype(z)) : allocate({0}, dtype);
  Tensor grad_means = asked(with_parameters, {classes, features}, dtype);
  Tensor grad_log_scales = asked(with_parameters, log_scales.sizes(), dtype);
  Tensor grad_log_prior = asked(with_parameters, {classes}, dtype);
  Tensor grad_weights = asked(with_weights, {rows, classes}, dtype);
  const auto results = [&] { return std::tuple{grad_z, grad_means, grad_log_scales, grad_log_prior, grad_weights}; };
  if (rows == 0 || features == 0) {
    for (Tensor* each : {&grad_z, &grad_means, &grad_log_scales, &grad_log_prior, &grad_weights}) {
      torch::stable::zero_(*each);
    }
    if (rows == 0) return results();
  }
  Classes all(z, means, log_scales, log_prior, labels, weights);
  GaussianClasses& op = all.op;
  const Tensor saved = torch::stable::contiguous(marginal);
  op.saved_marginal = saved.data_ptr();
  // The scale's gradient of isotropic classes is made from the energies, which a score of -inf does not tell.
  if (op.scaled || !with_parameters) op.saved_scores = strided(scores);
  op.grad_marginal = strided(grad_marginal);
  op.grad_picked = strided(grad_picked);
  op.grad_scores = strided(grad_scores);
  op.grad_weights = with_weights ? grad_weights.data_ptr() : nullptr;
  const int64_t part_rows = std::min(part_rows_of(features), rows), block = all.block_size();
  Scratch coefficient, energy, packed, wide_grad_z, scale_sums, sums;
  op.part_pitch = padded(part_rows);
  if (!all.direct()) op.packed = packed.reserve(op, part_rows * features);
  const bool narrows = with_z && op.z_dtype != (op.in_double ? float64 : float32);
  void* const wide = narrows ? wide_grad_z.reserve(op, part_rows * features) : nullptr;
  const bool reduces = op.scaled && log_scales.numel() != means.numel();
  op.grad_means = grad_means.data_ptr();
  op.grad_log_prior = grad_log_prior.data_ptr();
  op.grad_log_scales = reduces || !op.scaled ? scale_sums.reserve(op, op.scaled ? classes * features : classes)
                                             : grad_log_scales.data_ptr();
  op.coefficient = coefficient.reserve(op, block * op.part_pitch);
  if (!op.scaled && with_parameters) op.energy = energy.reserve(op, block * op.part_pitch);
  if (with_parameters) op.sums = sums.reserve(op, slices_of(part_rows) * block * 2 * padded(features));
  const auto differentiate = FASTFLOW_KERNEL(gaussian_class_coefficients);
  const auto pull = FASTFLOW_KERNEL(gaussian_class_gradients);
  const auto add_sums = FASTFLOW_KERNEL(gaussian_class_parameters);
  for (op.first_row = 0; op.first_row < rows; op.first_row += part_rows) {
    op.part_rows = std::min(part_rows, rows - op.first_row);
    char* const part_z = with_z ? static_cast<char*>(grad_z.data_ptr()) + op.first_row * features * bytes_of[op.z_dtype]
                                : nullptr;
    op.grad_z = narrows ? wide : part_z;
    op.narrow_grad_z = narrows ? part_z : nullptr;
    all.for_each_block(true, [&] {
      const int64_t again = op.saved_scores.data != nullptr ? 0 : op.scaled ? 2 : 1;
      all.over_rows_of(op.first_row, op.first_row + op.part_rows, again,
                       [&](int64_t first, int64_t last) { differentiate(op, first, last); });
      if (with_z || with_parameters) {
        const int64_t groups = (features + gaussian_unit_features - 1) / gaussian_unit_features;
        const int64_t of_unit = 3 * op.block_classes * gaussian_unit_features * std::min(gaussian_slice_rows, op.part_rows);
        torch::stable::parallel_for(0, slices_of(op.part_rows) * groups, 1 + 8 * grain / of_unit,
                                    [&](int64_t first, int64_t last) { pull(op, first, last); });
      }
      if (with_parameters) {
        torch::stable::parallel_for(0, op.block_classes, 1 + grain / (1 + features),
                                    [&](int64_t first, int64_t last) { add_sums(op, first, last); });
      }
    });
  }
  if (with_parameters && (reduces || !op.scaled)) {
    const int64_t wide_features = op.scaled ? features : 1;
    op.in_double ? sum_to(static_cast<const double*>(op.grad_log_scales), classes, wide_features, grad_log_scales)
                 : sum_to(static_cast<const float*>(op.grad_log_scales), classes, wide_features, grad_log_scales);
  }
  return results();
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("gaussian_class_scores", TORCH_BOX(&fastflow::forward));
  library.impl("gaussian_class_scores_backward", TORCH_BOX(&fastflow::backward));
}
