// Noise is added to clean volumes, drawn inside or given, float32: ops/add_noise.py.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

// Volumes are [samples][voxels], in any order of channels and voxels that they share.
struct NoisingTask {
  std::int64_t samples, voxels;
  const float* x0;
  const float* shares;  // [samples][2]: of the signal, of the noise
  const float* noise;   // null: drawn from seed and step
  std::uint64_t seed;
  std::uint32_t step;
  float* noisy;
  int threads;
};

struct NoisingKernels {
  void (*forward)(const NoisingTask&);
};
ORTHOKERNELS_TABLES(NoisingKernels, add_noise)

}  // namespace orthokernels::cpu
