// The class with the largest logit at every pixel of a finer or coarser grid, the logits sampled bilinearly at OpenCV's
// positions, for data/restore.py. Logits are float32, sums float64 and never fused, so that every
// instruction set finds the same classes.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

// Strides count elements. Labels are [rows][columns], strided; logits are [classes][height][width], strided.
struct LargestClassTask {
  const float* logits;
  std::int64_t classes, height, width, class_stride, height_stride, width_stride;
  std::uint8_t* labels;
  std::int64_t rows, columns, row_stride, column_stride;
  double* workspace;  // largest_class_workspace() doubles
  int threads;
};

struct LargestClassKernels {
  void (*find)(const LargestClassTask&);
};
ORTHOKERNELS_TABLES(LargestClassKernels, largest_class)

// For each thread two rows of every class, and of a row of pixels the largest logit and its class.
static inline std::int64_t largest_class_workspace(std::int64_t classes, std::int64_t columns, int threads) {
  return threads * (2 * classes + 2) * columns;
}

}  // namespace orthokernels::cpu
