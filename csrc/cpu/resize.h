// Trilinear interpolation to a given size, channels last, as PyTorch's with align_corners=False.
#pragma once

#include "cpu/conv3d.h"
#include "cpu/isa.h"

namespace orthokernels::cpu {

struct ResizeKernels {
  // x [in, channels] to y [out, channels]
  void (*trilinear)(const float* x, Sides in, float* y, Sides out, std::int64_t channels, int threads);
};
ORTHOKERNELS_TABLES(ResizeKernels, resize)

}  // namespace orthokernels::cpu
