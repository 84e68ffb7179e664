// permute_columns for dispatch key CPU: the columns of a matrix in another order. Moved: 8 bytes an element in float32.
#include "permute.h"

#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "scratch.h"
#include "tensors.h"

namespace fastflow {
namespace {

Tensor permute_columns(const Tensor& x, const Tensor& order) {
  const Tensor rows = with_dense_rows(x);
  const int64_t columns = x.size(1);
  STD_TORCH_CHECK(order.dim() == 1 && order.size(0) == columns, "permute_columns: order is not [C]");
  const bool is_long = order.scalar_type() == torch::headeronly::ScalarType::Long;
  STD_TORCH_CHECK(is_long || order.scalar_type() == torch::headeronly::ScalarType::Int,
                  "permute_columns: order is not int64 or int32");
  std::vector<int32_t> places(round_up(columns, 16));
  const char* from = static_cast<const char*>(order.data_ptr());
  for (int64_t i = 0; i < columns; ++i, from += order.stride(0) * (is_long ? 8 : 4)) {
    const int64_t place = is_long ? *reinterpret_cast<const int64_t*>(from) : *reinterpret_cast<const int32_t*>(from);
    STD_TORCH_CHECK(place >= 0 && place < columns, "permute_columns: order has the value ", place, ", expected 0 to ",
                    columns - 1);
    places[i] = static_cast<int32_t>(place);
  }
  Tensor z = allocate({x.size(0), columns}, native_dtype(x));
  if (z.numel() == 0) return z;
  const Permute op = {dtype_of(x) == float64, columns, places.data(), static_cast<const char*>(rows.data_ptr()),
                      rows.stride(0), static_cast<char*>(z.data_ptr())};
  const auto kernel = FASTFLOW_KERNEL(permute);
  torch::stable::parallel_for(0, x.size(0), std::max<int64_t>(1, grain / columns),
                              [&](int64_t first, int64_t last) { kernel(op, first, last); });
  return z;
}

}  // namespace
}  // namespace fastflow

STABLE_TORCH_LIBRARY_IMPL(fastflow, CPU, library) {
  library.impl("permute_columns", TORCH_BOX(&fastflow::permute_columns));
}
