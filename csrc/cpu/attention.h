// Attention over all tokens of a volume, channels last: softmax(q k^T scale) v for each head.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

// qkv: [tokens, 3 * heads * d]. Where heads_first, each head's q, k and v lie behind one another (guided-diffusion's
// legacy order); else all q, then all k, then all v. out: [tokens, heads * d].
struct AttentionTask {
  const float* qkv;
  float* out;
  std::int64_t tokens, heads, d;
  bool heads_first;
  float scale;
  float* workspace;  // attention_workspace_floats() of them
  int threads;
};

struct AttentionKernels {
  void (*attend)(const AttentionTask&);
};
ORTHOKERNELS_TABLES(AttentionKernels, attention)

constexpr std::int64_t kQueries = 24;  // of a block; a multiple of kRows

static inline std::int64_t attention_workspace_floats(std::int64_t tokens, std::int64_t heads, std::int64_t d, int threads,
                                               Isa isa) {
  const std::int64_t lanes = lanes_of(isa);
  const std::int64_t columns = (tokens + lanes - 1) / lanes * lanes, width = (d + lanes - 1) / lanes * lanes;
  return heads * (columns * d + tokens * width) + threads * kQueries * (d + columns + width);
}

}  // namespace orthokernels::cpu
