// The class with the largest logit at every pixel of a finer or coarser grid, for data/restore.py: several slabs' logits
// are weighted and added, and sampled bilinearly at OpenCV's positions. Logits and what they add up to are float32,
// samples float64, nothing is fused, so that every instruction set finds the same classes.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

constexpr std::int64_t kMostClasses = 256;  // that a label of 8 bits can name

// One slab's logits, [classes][height][width], and what they count.
struct WeightedLogits {
  const float* values;
  std::int64_t class_stride, height_stride, width_stride;
  float weight;
};

// Strides count elements. Labels are [rows][columns], strided.
struct LargestClassTask {
  const WeightedLogits* logits;
  std::int64_t slabs;  // at least one
  std::int64_t classes, height, width;
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
