// Group normalisation with the time embedding before, FiLM and SiLU behind, forward and backward, float32; the formulas
// stand in ops/group_norm_silu.py.
//
// Moments are taken twice over a block that the cache holds: its mean first, then the distances to it, so that a mean
// of a thousand deviations costs no digits. Blocks' sums are added in double precision, in the order of the blocks, and
// a block's size depends on the shape alone: the same bytes at any number of threads.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

// A volume of so many samples, and the one that is read as if concatenated behind it along the channels.
// Channels last they are [samples][voxels][channels], else [samples][channels][voxels].
struct GroupNormShape {
  std::int64_t samples, channels, skip_channels, voxels, groups;
  bool channels_last;
  [[gnu::always_inline]] std::int64_t all_channels() const { return channels + skip_channels; }
};

// What both directions read; null is left out.
struct GroupNormInput {
  const float* x;
  const float* skip;
  const float* weight;       // [all_channels]
  const float* bias;         // [all_channels]
  const float* shift;        // [samples][all_channels]
  const float* scale_shift;  // [samples][2][all_channels]
  bool silu;
};

// What either direction works in.
struct GroupNormWorkspace {
  double* sums;  // group_norm_sums() of them: up to three for each channel of each block
  float* table;  // group_norm_table() of them: what each channel becomes
};

struct GroupNormTask {
  GroupNormShape shape;
  GroupNormInput input;
  float eps;
  float* y;     // [samples] of all_channels
  float* mean;  // [samples][groups]
  float* rstd;  // [samples][groups]
  GroupNormWorkspace workspace;
  int threads;
};

struct GroupNormGradientTask {
  GroupNormShape shape;
  GroupNormInput input;
  const float* dy;
  const float* mean;
  const float* rstd;
  float* dx;
  float* dskip;         // null where skip is
  float* dweight;       // [samples][all_channels]: of each sample, as the three that follow
  float* dbias;         // [samples][all_channels]
  float* dshift;        // [samples][all_channels]
  float* dscale_shift;  // [samples][2][all_channels]
  GroupNormWorkspace workspace;
  int threads;
};

struct GroupNormKernels {
  void (*forward)(const GroupNormTask&);
  void (*backward)(const GroupNormGradientTask&);
};
ORTHOKERNELS_TABLES(GroupNormKernels, group_norm_silu)

constexpr std::int64_t kGroupNormBlock = 32768;  // floats of a block, in and out half of a second-level cache

// Voxels of a block: of all channels where they come last, else of one.
static inline std::int64_t group_norm_block(const GroupNormShape& shape) {
  const std::int64_t width = shape.channels_last ? shape.all_channels() : 1;
  const std::int64_t fit = kGroupNormBlock / width, least = fit < 1 ? 1 : fit;
  return least < shape.voxels ? least : shape.voxels;
}

static inline std::int64_t group_norm_blocks(const GroupNormShape& shape) {
  const std::int64_t block = group_norm_block(shape);
  return (shape.voxels + block - 1) / block;
}

static inline std::int64_t group_norm_sums(const GroupNormShape& shape) {
  return shape.samples * shape.all_channels() * group_norm_blocks(shape) * 3;
}

static inline std::int64_t group_norm_table(const GroupNormShape& shape) {
  return shape.samples * shape.all_channels() * 8;
}

}  // namespace orthokernels::cpu
