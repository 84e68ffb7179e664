// The CUDA kernel's tiles walked by one host thread: every thread of a tile loads, then every thread adds its energy.
#include "gaussian_class_scores.h"

#include <vector>

using namespace fastflow::gaussian;

template <class T>
void walk(const Problem<T>& p) {
  Tile<T> tile;
  for (int64_t row = 0; row < p.rows; row += tile_rows) {
    for (int64_t klass = 0; klass < p.classes; klass += tile_classes) {
      std::vector<T> energy(tile_threads, T(0));
      for (int64_t feature = 0; feature < p.features; feature += chunk) {
        for (int thread = 0; thread < tile_threads; ++thread) tile.load(p, row, klass, feature, thread);
        for (int thread = 0; thread < tile_threads; ++thread) {
          energy[thread] += tile.energy(thread % tile_rows, thread / tile_rows);
        }
      }
      for (int thread = 0; thread < tile_threads; ++thread) {
        const int64_t b = row + thread % tile_rows, k = klass + thread / tile_rows;
        if (b < p.rows && k < p.classes) p.scores[b * p.classes + k] = p.score(k, energy[thread]);
      }
    }
  }
}

extern "C" void walk_float(const Problem<float>* p) { walk(*p); }
extern "C" void walk_double(const Problem<double>* p) { walk(*p); }
