// What is done to a whole volume beside convolutions, channels last: its moments, and a normalisation's affine map.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

constexpr std::int64_t kMomentVoxels = 256;  // of a block of moments

static inline std::int64_t moment_blocks(std::int64_t voxels) { return (voxels + kMomentVoxels - 1) / kMomentVoxels; }

enum class Activation { none, silu, relu };

// y [voxels, channels + skip_channels] = activation(x scale + shift + residual), of both volumes side by side.
struct NormaliseTask {
  const float* x;
  std::int64_t channels;
  const float* skip;  // null for none
  std::int64_t skip_channels, voxels;
  const float* scale;
  const float* shift;
  const float* residual;  // [voxels, channels], null for none; not together with skip; y may be the same memory
  Activation activation;
  float* y;
  int threads;
};

struct NormaliseKernels {
  // x [voxels, channels] to moments [moment_blocks(voxels)][3][channels]: count, mean, squared distances to it.
  void (*moments)(const float* x, std::int64_t voxels, std::int64_t channels, float* moments, int threads);
  void (*apply)(const NormaliseTask&);
};
ORTHOKERNELS_TABLES(NormaliseKernels, normalise)

}  // namespace orthokernels::cpu
