// Trilinear doubling of depth, height and width, forward and backward, float32; the formulas stand in
// ops/upsample2x_trilinear.py. Both directions gather: every result is one sum in a fixed order.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

// The small volume is [samples][depth][height][width][channels]; channels first, `samples` are samples times channels,
// and `channels` is 1.
struct DoublingShape {
  std::int64_t samples, depth, height, width, channels;
};

// Forward reads the small volume and writes the large one, backward the other way round.
struct DoublingTask {
  DoublingShape shape;
  const float* from;
  float* to;
  float* workspace;  // doubling_workspace() floats
  int threads;
};

struct DoublingKernels {
  void (*forward)(const DoublingTask&);
  void (*backward)(const DoublingTask&);
};
ORTHOKERNELS_TABLES(DoublingKernels, upsample2x_trilinear)

// A large volume's row for each thread.
static inline std::int64_t doubling_workspace(const DoublingShape& shape, int threads) {
  return threads * 2 * shape.width * shape.channels;
}

}  // namespace orthokernels::cpu
