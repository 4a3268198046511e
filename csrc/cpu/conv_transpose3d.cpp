// Compiled for each instruction set: one row of output voxels and one panel of output channels at a time, its even and
// its odd voxels each as a convolution of two taps along the width.
#include "cpu/conv_transpose3d.h"

#include "cpu/taps.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

// The two taps that a place of some parity meets along an axis: where they read, from place / 2 on, and which they are.
struct Met {
  int offset, tap;
};
constexpr Met kMet[2][2] = {{{0, 1}, {-1, 3}}, {{0, 2}, {1, 0}}};

// kR voxels of one parity from `voxel` on, kC vectors of channels of which the last may be partly beyond the output's.
template <int kR, int kC>
void make_voxels(const TransposedTask& task, const Tap* taps, int count, std::int64_t channel, std::int64_t row_start,
                 std::int64_t voxel) {
  Vector sum[kR][kC] = {};
  add_taps<kR, kC>({task.in.width, 1, task.in_channels, 0}, taps, count, voxel, sum);
  for (int j = 0; j < kC; ++j) {
    const std::int64_t k = channel + j * kLanes;
    const int lanes = lanes_left(k, task.out_channels);
    const Vector bias = load_some(task.bias + k, lanes);
    for (int i = 0; i < kR; ++i) {
      const Vector value = sum[i][j] + bias;
      store_some(task.y + (row_start + 2 * (voxel + i)) * task.out_channels + k, task.relu ? relu(value) : value,
                 lanes);
    }
  }
}

template <int kC>
void make_row(const TransposedTask& task, const Tap* taps, int count, std::int64_t channel, std::int64_t row_start) {
  std::int64_t voxel = 0;
  for (; voxel + kRows <= task.in.width; voxel += kRows)
    make_voxels<kRows, kC>(task, taps, count, channel, row_start, voxel);
  for (; voxel < task.in.width; ++voxel) make_voxels<1, kC>(task, taps, count, channel, row_start, voxel);
}

// The taps that voxels of one parity along the width meet, in the volume.
int taps_of(const TransposedTask& task, std::int64_t d, std::int64_t h, int parity, const float* weights,
            std::int64_t step, Tap* taps) {
  int count = 0;
  for (const Met& deep : kMet[d % 2]) {
    const std::int64_t from_d = d / 2 + deep.offset;
    if (from_d < 0 || from_d >= task.in.depth) continue;
    for (const Met& down : kMet[h % 2]) {
      const std::int64_t from_h = h / 2 + down.offset;
      if (from_h < 0 || from_h >= task.in.height) continue;
      for (const Met& across : kMet[parity]) {
        const float* row = task.x + (from_d * task.in.height + from_h) * task.in.width * task.in_channels;
        taps[count++] = {{row, nullptr}, across.offset, weights + ((deep.tap * 4 + down.tap) * 4 + across.tap) * step};
      }
    }
  }
  return count;
}

void make_unit(const TransposedTask& task, std::int64_t panel, std::int64_t row) {
  constexpr std::int64_t kWide = kColumns * kLanes;
  const std::int64_t first = panel * kWide, left = (task.out_channels - first + kLanes - 1) / kLanes;
  const std::int64_t columns = left < kColumns ? left : kColumns;
  const std::int64_t d = row / (2 * task.in.height), h = row % (2 * task.in.height);
  const float* weights = task.weights + first * kTransposedTaps * task.in_channels;
  for (int parity = 0; parity < 2; ++parity) {
    Tap taps[8];
    const int count = taps_of(task, d, h, parity, weights, task.in_channels * columns * kLanes, taps);
    const std::int64_t row_start = row * 2 * task.in.width + parity;
    if (columns == 1) make_row<1>(task, taps, count, first, row_start);
    if (columns == 2) make_row<2>(task, taps, count, first, row_start);
    if (kColumns > 2 && columns == 3) make_row<3>(task, taps, count, first, row_start);
    if (kColumns > 3 && columns == 4) make_row<4>(task, taps, count, first, row_start);
  }
}

void run(const TransposedTask& task) {
  const std::int64_t rows = 4 * task.in.depth * task.in.height;
  const std::int64_t panels = (task.out_channels + kColumns * kLanes - 1) / (kColumns * kLanes);
#pragma omp parallel for schedule(dynamic, 4) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < rows * panels; ++unit) make_unit(task, unit / rows, unit % rows);
}

}  // namespace

const TransposedKernels conv_transpose3d = {run};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
