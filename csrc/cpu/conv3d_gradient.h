// The gradient of a 3 x 3 x 3 convolution's weights, channels last, float32, by Winograd's algorithm turned round:
//
//   dw[k, c, t] = sum over voxels p of dy[p, k] x[stride p + t - 1, c]
//
// Forward is y = A'[(G w G')(B'x)] for every tile; so dw = G'[sum over tiles of (B'x)(A dy)]G: the input goes through
// forward's own transform, the output's gradient through the transpose of the output's, and for each transformed place
// the tiles' outer products are summed: as many products as forward, 4.5 a voxel and pair of channels instead of 27.
//
//   variant      relative L2 error to float64, at most, for unit variance and up to 2^20 voxels
//   F(2,2,2)     2e-6
//   F(1,4,4)     4e-6   volumes of one slice only
//   F(2,4,4)     6e-6
//   F(4,4,4)     8e-6
//   F(2,2,2)/2   2e-6
//
// Tiles are taken in rounds: what a round's are transformed to fits the outer caches, and its products are summed in
// registers before they are added to those of the rounds before it. The order of all sums depends on shapes and
// instruction set alone: the same bytes at any number of threads.
#pragma once

#include <cstdint>

#include "cpu/conv3d.h"
#include "cpu/isa.h"

namespace orthokernels::cpu {

// All that a kernel is told. A vector's lanes of channels, of one place, lie together: [place][channels / lanes][tiles
// of a round][lanes].
struct GradientTask {
  Sides in, out;
  std::int64_t in_channels, out_channels;
  Sides box;                                // tiles that are transformed together, along each axis
  std::int64_t boxes, tiles;                // of a round, at most
  std::int64_t value_step, gradient_step;   // from one place to the next, floats
  std::int64_t row_floats, thread_floats;   // of a thread's row, and of its row and lines
  int threads;
  const float* x;     // [in, in_channels]
  const float* dy;    // [out, out_channels]
  float* values;      // the input, transformed
  float* gradients;   // dy, transformed
  float* own;         // each thread's row and lines
  float* sums;        // [places][in_channels][out_channels], zeros at first
};

struct GradientKernels {
  void (*winograd)(Algorithm, const GradientTask&);
};
ORTHOKERNELS_TABLES(GradientKernels, conv3d_gradient)

// Write dw [out, in, 3, 3, 3] of x [sides, in] and dy [ceil(sides / stride), out]. Throws std::invalid_argument where
// the algorithm does not fit, as Conv3d::unfit tells, or is direct; OutOfMemory.
void weight_gradient(const float* x, const float* dy, float* dw, Sides sides, std::int64_t out, std::int64_t in,
                     int stride, Algorithm algorithm, Isa isa, int threads);

}  // namespace orthokernels::cpu
