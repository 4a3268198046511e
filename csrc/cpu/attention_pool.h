// Attention, then the mean over its queries, float32: ops/attention_pool.py. A block of queries has its scores in the
// cache; neither attended tokens nor a matrix of scores exist.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

struct PoolingTask {
  std::int64_t heads, tokens, d;  // heads of all samples
  float scale;
  const float* q;    // [heads][tokens][d], as k and v
  const float* k;
  const float* v;
  float* out;        // [heads][d]
  float* looked_at;  // [heads][tokens]: w of the formulas
  float* log_sum;    // [heads][tokens]
  float* workspace;  // pooling_workspace() floats
  int threads;
};

struct PoolingKernels {
  void (*forward)(const PoolingTask&);
};
ORTHOKERNELS_TABLES(PoolingKernels, attention_pool)

constexpr std::int64_t kPoolingSlices = 8;    // of a head's queries, whose sums are added in order at the end
constexpr std::int64_t kPoolingQueries = 24;  // of a block
constexpr std::int64_t kPoolingColumns = 64;  // keys are taken in whole multiples, at any instruction set

static inline std::int64_t pooling_columns(std::int64_t tokens) {
  return (tokens + kPoolingColumns - 1) / kPoolingColumns * kPoolingColumns;
}

// Each head's keys and its slices' sums, and each thread's scores.
static inline std::int64_t pooling_workspace(std::int64_t heads, std::int64_t tokens, std::int64_t d, int threads) {
  return pooling_columns(tokens) * (heads * (d + kPoolingSlices) + threads * kPoolingQueries);
}

}  // namespace orthokernels::cpu
