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
  Tensor z, means, log_scales, log_prior, labels, weights, marginal, grad_marginal, grad_picked, grad_scores;
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

// Both return the bytes of memory that the kernels asked for.
template <class T>
int64_t forward(const Arguments& a, const Results& r, int multiprocessors, bool descending) {
  HostDevice device(multiprocessors, descending);
  gaussian::forward(device, given_of<T>(a), data_of<T>(r.marginal), data_of<T>(r.picked), data_of<T>(r.scores));
  return device.allocated();
}

template <class T>
int64_t backward(const Arguments& a, const Results& r, int multiprocessors, bool descending) {
  HostDevice device(multiprocessors, descending);
  const gaussian::Gradients<T> gradients = {
      strided_of<T>(a.marginal), strided_of<T>(a.grad_marginal), strided_of<T>(a.grad_picked),
      strided_of<T>(a.grad_scores), r.grad_z.data != nullptr, r.grad_means.data != nullptr,
      r.grad_weights.data != nullptr, {r.grad_z.data, a.z.storage, a.z.columns}, data_of<T>(r.grad_means),
      data_of<T>(r.grad_log_scales), data_of<T>(r.grad_log_prior), data_of<T>(r.grad_weights)};
  gaussian::backward(device, given_of<T>(a), gradients);
  return device.allocated();
}

#define EXPORT(name, T)                                                                                          \
  extern "C" int64_t name##_##T(const Arguments* a, const Results* r, int multiprocessors, bool descending) {    \
    return name<T>(*a, *r, multiprocessors, descending);                                                         \
  }
EXPORT(forward, float)
EXPORT(forward, double)
EXPORT(backward, float)
EXPORT(backward, double)
