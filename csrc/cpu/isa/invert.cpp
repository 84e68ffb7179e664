// invert for one instruction set, by a team of one.
#include "cpu/invert.h"

#include "invert.h"

namespace fastflow::FASTFLOW_ISA {
namespace {

struct One {
  static constexpr int line() { return 0; }
  static constexpr int lines() { return 1; }
  static constexpr int column() { return 0; }
  static constexpr int columns() { return 1; }
  static void barrier() {}
};

}  // namespace

void invert(const Invert& op, int64_t, int64_t) {
  Elimination elimination = {op.matrix, op.rows, 0, {}, {}};
  fastflow::invert(elimination, One{});
  *op.log_abs_det = elimination.log_abs_det;
}

}  // namespace fastflow::FASTFLOW_ISA
