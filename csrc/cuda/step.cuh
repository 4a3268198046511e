// A sampler's step at one voxel; the formulas stand in ops/denoise_step.py.
#pragma once

#include "portable.cuh"

struct Coefficients {
  float x0_x, x0_output, next_x, next_output, next_x0, next_previous, next_noise;
};

// The clean volume that the network's output means.
ORTHO_DEVICE float clean(const Coefficients& c, float x, float output) { return c.x0_x * x + c.x0_output * output; }

// NaN stays, as in the Triton kernel; fminf and fmaxf would drop it.
ORTHO_DEVICE float clamped(float x0, float bound) { return x0 < -bound ? -bound : x0 > bound ? bound : x0; }

// The next volume, but for what the step before and the noise add to it.
ORTHO_DEVICE float advanced(const Coefficients& c, float x, float output, float x0) {
  return c.next_x * x + c.next_output * output + c.next_x0 * x0;
}
