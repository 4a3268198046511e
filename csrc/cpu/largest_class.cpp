#include "cpu/largest_class.h"

#include <cmath>

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

// The two samples around an output, and the weight of the second.
struct Place {
  std::int64_t lower, upper;
  double weight;
};

Place place_of(std::int64_t output, std::int64_t outputs, std::int64_t samples) {
  const double scale = static_cast<double>(samples) / static_cast<double>(outputs);
  const double position = (static_cast<double>(output) + 0.5) * scale - 0.5;
  if (position <= 0.0) return {0, 0, 0.0};
  if (position >= static_cast<double>(samples - 1)) return {samples - 1, samples - 1, 0.0};
  const std::int64_t lower = static_cast<std::int64_t>(position);
  return {lower, lower + 1, position - static_cast<double>(lower)};
}

// Every class at one pixel of row h: the slabs' logits, weighted and added in their order, into [classes].
void add_up(const LargestClassTask& task, std::int64_t h, std::int64_t w, float* sums) {
  for (std::int64_t slab = 0; slab < task.slabs; ++slab) {
    const WeightedLogits& own = task.logits[slab];
    const float* values = own.values + h * own.height_stride + w * own.width_stride;
    for (std::int64_t c = 0; c < task.classes; ++c) {
      const float weighted = values[c * own.class_stride] * own.weight;
      sums[c] = slab == 0 ? weighted : sums[c] + weighted;
    }
  }
}

// Row h of every class, sampled at the columns: [classes][columns].
void sample_row(const LargestClassTask& task, std::int64_t h, double* row) {
  float sums[2][kMostClasses];
  std::int64_t summed[2] = {-1, -1};
  for (std::int64_t j = 0; j < task.columns; ++j) {
    const Place w = place_of(j, task.columns, task.width);
    const std::int64_t wanted[2] = {w.lower, w.upper};
    for (const std::int64_t own : wanted)  // neighbours have different parity, so neither overwrites the other
      if (summed[own % 2] != own) add_up(task, h, summed[own % 2] = own, sums[own % 2]);
    const float *left = sums[w.lower % 2], *right = sums[w.upper % 2];
    for (std::int64_t c = 0; c < task.classes; ++c)
      row[c * task.columns + j] =
          static_cast<double>(left[c]) * (1.0 - w.weight) + static_cast<double>(right[c]) * w.weight;
  }
}

void find_rows(const LargestClassTask& task, std::int64_t from, std::int64_t to, double* workspace) {
  const std::int64_t size = task.classes * task.columns;
  double* rows[2] = {workspace, workspace + size};
  std::int64_t sampled[2] = {-1, -1};
  double *largest = workspace + 2 * size, *found = largest + task.columns;
  for (std::int64_t i = from; i < to; ++i) {
    const Place h = place_of(i, task.rows, task.height);
    if (sampled[0] != h.lower && sampled[1] == h.lower) {
      double* last = rows[0];
      rows[0] = rows[1], rows[1] = last;
      sampled[1] = sampled[0], sampled[0] = h.lower;
    }
    const std::int64_t wanted[2] = {h.lower, h.upper};
    for (int n = 0; n < 2; ++n)
      if (sampled[n] != wanted[n]) sample_row(task, sampled[n] = wanted[n], rows[n]);
    for (std::int64_t j = 0; j < task.columns; ++j) largest[j] = -HUGE_VAL, found[j] = 0.0;
    for (std::int64_t c = 0; c < task.classes; ++c) {
      const double *lower = rows[0] + c * task.columns, *upper = rows[1] + c * task.columns;
      const double own = static_cast<double>(c), below = 1.0 - h.weight, above = h.weight;
      for (std::int64_t j = 0; j < task.columns; ++j) {
        const double value = lower[j] * below + upper[j] * above;
        found[j] = value > largest[j] ? own : found[j];
        largest[j] = value > largest[j] ? value : largest[j];
      }
    }
    std::uint8_t* labels = task.labels + i * task.row_stride;
    for (std::int64_t j = 0; j < task.columns; ++j) labels[j * task.column_stride] = static_cast<std::uint8_t>(found[j]);
  }
}

void find(const LargestClassTask& task) {
  const std::int64_t own = largest_class_workspace(task.classes, task.columns, 1);
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (int part = 0; part < task.threads; ++part)
    find_rows(task, task.rows * part / task.threads, task.rows * (part + 1) / task.threads,
              task.workspace + part * own);
}

}  // namespace

const LargestClassKernels largest_class = {find};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
