// 3D convolution, channels last, float32: 3 x 3 x 3 or 1 x 1 x 1, stride 1 or 2, zeros around.
//
// 3 x 3 x 3 can go by minimal multiplication in all three dimensions (Winograd's algorithm; Lavin & Gray, arXiv
// 1509.09308; points after Barabasz et al., arXiv 1803.10986): F(d, h, w) makes d x h x w voxels at once from
// (d + 2)(h + 2)(w + 2) products for each pair of channels instead of 27 d h w. F(2,2,2)/2 is of stride 2: along each
// axis the outer taps go by F(2, 2) and the middle one as it is, 5 products for 2 voxels instead of 6.
//
//   variant      products a voxel   relative L2 error to float64, at most, for 64 channels of unit variance
//   direct       27                 1e-6   (errors grow as the square root of the channels)
//   F(2,2,2)     8                  8e-7
//   F(1,4,4)     2.25 (of 9)        2e-6   volumes of one slice only: the outer taps see zeros
//   F(2,4,4)     4.5                2e-6
//   F(4,4,4)     3.375              4e-6
//   F(2,2,2)/2   15.625             8e-7
//
// What surrounds a convolution in a residual block is part of it: group normalisation's affine map and SiLU are applied
// as the input is read, a second volume is read as if concatenated, bias and residual are added as the output is
// written, and the output's moments by channel are gathered on the way, for the normalisation that follows.
//
// The order of all sums depends on shapes and instruction set alone: the same bytes at any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace orthokernels::cpu {

enum class Algorithm { direct, winograd222, winograd144, winograd244, winograd444, strided222 };

const char* name_of(Algorithm algorithm);

struct Sides {
  std::int64_t depth, height, width;
  [[gnu::always_inline]] std::int64_t voxels() const { return depth * height * width; }
};

// What is read. [depth, height, width, channels], and [.., skip_channels] behind it where skip is not null.
struct ConvInput {
  const float* x;
  std::int64_t channels;
  const float* skip = nullptr;
  std::int64_t skip_channels = 0;
  // [channels + skip_channels] each, or null: silu(value * scale + shift) is convolved, zeros around it.
  const float* scale = nullptr;
  const float* shift = nullptr;
};

// What is written. y and residual are [depth, height, width, out]; they may be the same memory.
struct ConvOutput {
  float* y;
  const float* bias = nullptr;      // [out]
  const float* residual = nullptr;  // added last
  float* moments = nullptr;         // [blocks][3][out]: count, mean, sum of squared distances to it
};

// A thread's workspace of Winograd's algorithm, in floats from its beginning. First come the transformed places, values
// one place further than sums.
struct WinogradRoom {
  std::int64_t place_step;  // from one place to the next
  std::int64_t row;         // a row of the input, kLanes channels of it
  std::int64_t lines;       // all rows, transformed along width
  std::int64_t gathered;    // moments
  std::int64_t floats;      // of it all
};

// All that a kernel is told: the same for every instruction set.
struct ConvTask {
  Sides in, out;
  std::int64_t in_channels, out_channels;  // of both inputs together
  int kernel, stride;
  Sides box;          // Winograd: tiles that are made together, along each axis
  WinogradRoom room;  // and where
  int threads;
  const float* weights;  // packed for the algorithm and the instruction set
  float* workspace;      // workspace_floats() of them
  ConvInput input;
  std::int64_t x_step, skip_step;  // floats from one voxel of x and of skip to the next; as many as channels for direct
  ConvOutput output;
};

struct ConvKernels {
  void (*direct)(const ConvTask&);
  void (*winograd)(Algorithm, const ConvTask&);
};
ORTHOKERNELS_TABLES(ConvKernels, conv3d)

// Whether the direct algorithm's lanes are input channels; weights are [out][taps][in] then, and not packed.
[[gnu::always_inline]] inline bool sums_lanes(std::int64_t out, std::int64_t in) { return out <= 2 && in >= 16; }

// Weights [in, out, taps] as the transposed convolution reads them: panels of output channels, in them the taps, in them
// the input channels; lanes beyond the outputs are zero. So the direct algorithm has its own.
Floats packed_taps(const float* weight, std::int64_t out, std::int64_t in, std::int64_t taps, Isa isa);

// Whose kernels run Winograd's algorithms, whose lanes must divide all channels: those of the instruction set, or
// AVX2's where only eight lanes do. A processor with AVX-512 runs both.
Isa winograd_isa(Isa isa, std::int64_t out, std::int64_t in, std::int64_t skip);

// A convolution's weights, packed for one algorithm and instruction set, to be run on one shape.
class Conv3d {
 public:
  // weight: [out, in, kernel, kernel, kernel], or null: nothing is packed then, and nothing can be run. Of the input's
  // channels the last `skip` are those of a second volume. Throws std::invalid_argument where the algorithm does not
  // fit.
  Conv3d(const float* weight, std::int64_t out, std::int64_t in, int kernel, int stride, Sides sides,
         Algorithm algorithm, Isa isa, int tiles = 0, std::int64_t skip = 0);

  // Why an algorithm can not take a convolution, or null.
  static const char* unfit(Algorithm algorithm, std::int64_t out, std::int64_t in, int kernel, int stride, Sides sides,
                           Isa isa, std::int64_t skip = 0);

  // Why two inputs' channels or an activation do not fit the algorithm, or null.
  const char* unfit_input(const ConvInput& input) const;

  Sides in_sides() const { return in_; }
  Sides out_sides() const { return out_; }
  std::int64_t in_channels() const { return in_channels_; }
  std::int64_t out_channels() const { return out_channels_; }
  Algorithm algorithm() const { return algorithm_; }
  std::int64_t workspace_floats(int threads) const;
  std::int64_t moment_blocks() const;
  double operations() const;       // multiplications and additions of the definition
  double operations_done() const;  // of the algorithm's products
  std::int64_t weight_bytes() const { return static_cast<std::int64_t>(weights_.size()) * 4; }

  void run(const ConvInput& input, const ConvOutput& output, float* workspace, int threads) const;

 private:
  Sides grid() const;  // tiles along each axis

  Sides in_, out_;
  std::int64_t out_channels_, in_channels_;
  std::int64_t piece_;  // input channels that are convolved at a time; the next ones' are added to the output
  int kernel_, stride_;
  Sides box_{};
  WinogradRoom room_{};
  Algorithm algorithm_;
  Isa isa_;
  Floats weights_;
};

// A group's mean and 1 / sqrt(variance + eps) from the moments of its channels, folded with weight and bias into
// scale and shift of each channel: (x - mean) rstd weight + bias = x scale + shift. Two volumes side by side have moments
// of their own, each with its number of blocks.
struct ChannelMoments {
  const float* moments;
  std::int64_t blocks, channels;
};
void fold_group_norm(const std::vector<ChannelMoments>& parts, std::int64_t groups, const float* weight,
                     const float* bias, float eps, float* scale, float* shift);

}  // namespace orthokernels::cpu
