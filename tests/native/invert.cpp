// The elimination of the CUDA kernel by a team of host threads, whose barriers are real.
#include "invert.h"

#include <pthread.h>

#include <thread>
#include <vector>

struct Team {
  pthread_barrier_t* all;
  int own_line, own_column, line_count, column_count;
  int line() const { return own_line; }
  int lines() const { return line_count; }
  int column() const { return own_column; }
  int columns() const { return column_count; }
  void barrier() const { pthread_barrier_wait(all); }
};

extern "C" double invert_by_threads(double* matrix, int rows, int lines, int columns) {
  fastflow::Elimination elimination = {matrix, rows, 0, {}, {}};
  pthread_barrier_t all;
  pthread_barrier_init(&all, nullptr, lines * columns);
  std::vector<std::thread> threads;
  for (int line = 0; line < lines; ++line) {
    for (int column = 0; column < columns; ++column) {
      threads.emplace_back([&, line, column] { fastflow::invert(elimination, Team{&all, line, column, lines, columns}); });
    }
  }
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&all);
  return elimination.log_abs_det;
}
