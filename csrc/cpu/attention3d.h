// Attention over a volume's tokens, float32, with a relative-position bias and windows: ops/attention3d.py. A block of
// queries has its scores for all keys in the workspace; those outside its window are computed and then left out.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

struct AttentionTask {
  // Token t of head n has its d channels at n * head_step + t * step.
  const float* q;
  const float* k;
  const float* v;
  std::int64_t head_step, step;
  float* out;
  std::int64_t out_head_step, out_step;
  float* log_sum;  // [heads][tokens], logarithms of the softmax's denominators; or null
  std::int64_t heads, tokens, d;
  std::int64_t grid[3], window[3];  // the tokens' sides, and how many places a query sees along each
  const float* bias;                // [bias_heads][2 D - 1][2 H - 1][2 W - 1], of head n at n % bias_heads; or null
  std::int64_t bias_heads;
  float scale;
  float* workspace;  // attention_workspace_floats() of them
  int threads;
};

struct AttentionKernels {
  void (*forward)(const AttentionTask&);
};
ORTHOKERNELS_TABLES(AttentionKernels, attention3d)

constexpr std::int64_t kQueries = 24;  // of a block; a multiple of kRows

static inline std::int64_t attention_workspace_floats(std::int64_t tokens, std::int64_t heads, std::int64_t d,
                                                      int threads, Isa isa) {
  const std::int64_t lanes = lanes_of(isa);
  const std::int64_t columns = (tokens + lanes - 1) / lanes * lanes, width = (d + lanes - 1) / lanes * lanes;
  return heads * (columns * d + tokens * width) + threads * kQueries * (d + columns + width);
}

}  // namespace orthokernels::cpu
