// What is done to a whole volume beside convolutions, channels last: its moments, and a normalisation's affine map.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

constexpr std::int64_t kMomentVoxels = 256;  // of a block of moments

static inline std::int64_t moment_blocks(std::int64_t voxels) { return (voxels + kMomentVoxels - 1) / kMomentVoxels; }

struct NormaliseKernels {
  // x [voxels, channels] to moments [moment_blocks(voxels)][3][channels]: count, mean, squared distances to it.
  void (*moments)(const float* x, std::int64_t voxels, std::int64_t channels, float* moments, int threads);
  // y [voxels, channels + skip_channels] = x scale + shift of both volumes side by side, SiLU of it where asked for.
  void (*apply)(const float* x, std::int64_t channels, const float* skip, std::int64_t skip_channels,
                std::int64_t voxels, const float* scale, const float* shift, bool silu, float* y, int threads);
};
ORTHOKERNELS_TABLES(NormaliseKernels, normalise)

}  // namespace orthokernels::cpu
