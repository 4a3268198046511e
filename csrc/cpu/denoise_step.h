// One step of a sampler, noise inside, float32; the formulas stand in ops/denoise_step.py.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace orthokernels::cpu {

struct StepCoefficients {
  float x0_x, x0_output, next_x, next_output, next_x0, next_previous, next_noise;
};

// Volumes are [samples][voxels], in any order of channels and voxels that they share; null is left out.
struct StepTask {
  std::int64_t samples, voxels;
  StepCoefficients coefficients;
  const float* x;
  const float* output;
  const float* previous;
  const float* threshold;  // [samples]
  float clip;              // 0: none
  bool noisy;
  std::uint64_t seed;
  std::uint32_t step;
  float* found;
  float* x0;
  int threads;
};

struct StepKernels {
  void (*forward)(const StepTask&);
};
ORTHOKERNELS_TABLES(StepKernels, denoise_step)

}  // namespace orthokernels::cpu
