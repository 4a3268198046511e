// Transposed 3D convolution of 4 x 4 x 4, stride 2, padding 1, channels last, float32: every side doubles.
//
// A place of the output meets two of the kernel's four taps along each axis, those of one parity:
//
//   y[2 m]     = x[m] w[1] + x[m - 1] w[3]
//   y[2 m + 1] = x[m] w[2] + x[m + 1] w[0]
//
// so that it is a sum of eight products a pair of channels, direct, in an order that depends on the shape alone.
#pragma once

#include <cstdint>

#include "cpu/conv3d.h"
#include "cpu/isa.h"
#include "cpu/memory.h"

namespace orthokernels::cpu {

struct TransposedTask {
  Sides in;  // the output's are twice as many
  std::int64_t in_channels, out_channels;
  const float* x;        // [in, in_channels]
  const float* weights;  // packed_taps() of them
  const float* bias;     // [out_channels]
  bool relu;             // max(0, y)
  float* y;              // [out, out_channels]
  int threads;
};

struct TransposedKernels {
  void (*run)(const TransposedTask&);
};
ORTHOKERNELS_TABLES(TransposedKernels, conv_transpose3d)

constexpr int kTransposedTaps = 64;

}  // namespace orthokernels::cpu
