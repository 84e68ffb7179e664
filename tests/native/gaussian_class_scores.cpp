// The CUDA kernels of the Gaussian class scores and their gradients, planned for a device of some size, run on the
// host.
#include "gaussian_class_plan.h"
#include "testing/thread_block.h"

using namespace fastflow;

// A tensor, as tests/test_gaussian_class_scores_host.py describes it; data nullptr where there is none.
struct Tensor {
  void* data;
  Storage storage;
  int64_t rows, columns, row, column;
};

struct Arguments {
  Tensor z, means, log_scales, log_prior, labels, weights, marginal, scores, grad_marginal, grad_picked, grad_scores;
};

struct Results {
  Tensor marginal, picked, scores, grad_z, grad_means, grad_log_scales, grad_log_prior, grad_weights;
};

template <class T>
Matrix<T> matrix_of(const Tensor& x) {
  return matrix<T>(x.data, x.storage, x.rows, x.columns, x.row, x.column);
}

template <class T>
Strided<T> strided_of(const Tensor& x) {
  return {static_cast<const T*>(x.data), x.row, x.column};
}

template <class T>
T* data_of(const Tensor& x) {
  return static_cast<T*>(x.data);
}

template <class T>
gaussian::Given<T> given_of(const Arguments& a) {
  return {matrix_of<T>(a.z), matrix_of<T>(a.means), strided_of<T>(a.log_scales), strided_of<T>(a.log_prior),
          a.log_scales.rows, a.log_scales.columns, {strided_of<int64_t>(a.labels), strided_of<T>(a.weights)}};
}

template <class T>
void forward(const Arguments& a, const Results& r, int multiprocessors, bool descending, int64_t) {
  HostDevice device(multiprocessors, descending);
  gaussian::forward(device, given_of<T>(a), data_of<T>(r.marginal), data_of<T>(r.picked), data_of<T>(r.scores));
}

template <class T>
void backward(const Arguments& a, const Results& r, int multiprocessors, bool descending, int64_t rows_of_a_pass) {
  HostDevice device(multiprocessors, descending);
  const gaussian::Gradients<T> gradients = {
      strided_of<T>(a.marginal), strided_of<T>(a.scores), strided_of<T>(a.grad_marginal),
      strided_of<T>(a.grad_picked), strided_of<T>(a.grad_scores), r.grad_z.data != nullptr,
      r.grad_means.data != nullptr, r.grad_weights.data != nullptr, {r.grad_z.data, a.z.storage, a.z.columns}, data_of<T>(r.grad_means),
      data_of<T>(r.grad_log_scales), data_of<T>(r.grad_log_prior), data_of<T>(r.grad_weights)};
  gaussian::backward(device, given_of<T>(a), gradients, rows_of_a_pass);
}

// Launches nothing and allocates nothing: keeps what it was asked for.
struct Plan {
  int64_t allocated = 0;
  Grid most = {0, 0, 0};
  int count;

  template <class T>
  T* allocate(int64_t elements) {
    allocated += static_cast<int64_t>(sizeof(T)) * elements;
    return reinterpret_cast<T*>(alignof(T));
  }
  template <class Kernel>
  void launch(const Grid& grid, const Kernel&) {
    most = {std::max(most.x, grid.x), std::max(most.y, grid.y), std::max(most.z, grid.z)};
  }
  int multiprocessors() const { return count; }
};

// {bytes of forward, of backward, most blocks along x, y, z} for contiguous z and scales of each class and feature, the
// scores kept between them or not.
extern "C" void plan(int64_t rows, int64_t classes, int64_t features, int multiprocessors, bool kept,
                     int64_t* found) {
  float* const some = reinterpret_cast<float*>(16);
  const auto table = [&](int64_t lines) { return matrix<float>(some, Storage::float32, lines, features, features, 1); };
  const gaussian::Given<float> given = {table(rows), table(classes), {some, features, 1}, {some, 1, 0},
                                        classes, features, {}};
  Plan forward{0, {0, 0, 0}, multiprocessors}, backward = forward;
  gaussian::forward(forward, given, some, some, kept ? some : nullptr);
  const Strided<float> scores = {kept ? some : nullptr, classes, 1};
  const gaussian::Gradients<float> all = {{some, 1, 0}, scores, {some, 1, 0}, {}, {}, true, true, false,
                                          {some, Storage::float32, features}, some, some, some, some};
  gaussian::backward(backward, given, all, gaussian::rows_at_once(rows, classes, features));
  found[0] = forward.allocated, found[1] = backward.allocated;
  found[2] = std::max(forward.most.x, backward.most.x), found[3] = std::max(forward.most.y, backward.most.y);
  found[4] = std::max(forward.most.z, backward.most.z);
}

#define EXPORT(name, T)                                                                                    \
  extern "C" void name##_##T(const Arguments* a, const Results* r, int multiprocessors, bool descending,   \
                             int64_t rows_of_a_pass) {                                                     \
    name<T>(*a, *r, multiprocessors, descending, rows_of_a_pass);                                          \
  }
EXPORT(forward, float)
EXPORT(forward, double)
EXPORT(backward, float)
EXPORT(backward, double)
