// Products of a row of voxels with the taps of a kernel, channels last: what convolutions without a transform share.
#pragma once

#include <cstdint>

#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {

// The rows that taps read, of a volume and of one behind it (skip_channels 0 where there is none). Voxel n is met at
// n * stride and the tap's offset.
struct TapRows {
  std::int64_t width, stride, channels, skip_channels;
};

// One tap of a kernel on one row.
struct Tap {
  const float* row[2];   // of both volumes, at depth and height of the tap
  std::int64_t offset;   // along width
  const float* weights;  // [channels of both][a panel's columns]
};

// Adds the products of kR voxels' channels; `value_of(i, c)` is channel c of voxel i.
template <int kR, int kC, typename Value>
inline void add_products(const Value& value_of, const float* weights, std::int64_t channels, Vector (&sum)[kR][kC]) {
  for (std::int64_t c = 0; c < channels; ++c) {
    Vector weight[kC];
    for (int j = 0; j < kC; ++j) weight[j] = load(weights + (c * kC + j) * kLanes);
    for (int i = 0; i < kR; ++i) {
      const Vector value = splat(value_of(i, c));
      for (int j = 0; j < kC; ++j) sum[i][j] += value * weight[j];
    }
  }
}

// Adds one tap of one volume for kR voxels from `voxel` on. Outside the row it reads zeros.
template <int kR, int kC>
inline void add_tap(const TapRows& rows, const float* row, std::int64_t offset, std::int64_t channels,
                    const float* weights, std::int64_t voxel, Vector (&sum)[kR][kC]) {
  static const float zero = 0.0f;
  const std::int64_t first = voxel * rows.stride + offset, last = first + (kR - 1) * rows.stride;
  if (first >= 0 && last < rows.width) {
    const float* from = row + first * channels;
    const std::int64_t step = rows.stride * channels;
    const auto value_of = [&](int i, std::int64_t c) { return from[i * step + c]; };
    return add_products<kR, kC>(value_of, weights, channels, sum);
  }
  const float* from[kR];
  std::int64_t steps[kR];
  for (int i = 0; i < kR; ++i) {
    const std::int64_t w = first + i * rows.stride;
    const bool inside = w >= 0 && w < rows.width;
    from[i] = inside ? row + w * channels : &zero;
    steps[i] = inside ? 1 : 0;
  }
  const auto value_of = [&](int i, std::int64_t c) { return from[i][c * steps[i]]; };
  add_products<kR, kC>(value_of, weights, channels, sum);
}

// Adds all taps for kR voxels from `voxel` on.
template <int kR, int kC>
inline void add_taps(const TapRows& rows, const Tap* taps, int count, std::int64_t voxel, Vector (&sum)[kR][kC]) {
  for (int n = 0; n < count; ++n) {
    const Tap& tap = taps[n];
    add_tap<kR, kC>(rows, tap.row[0], tap.offset, rows.channels, tap.weights, voxel, sum);
    if (rows.skip_channels > 0)
      add_tap<kR, kC>(rows, tap.row[1], tap.offset, rows.skip_channels, tap.weights + rows.channels * kC * kLanes,
                      voxel, sum);
  }
}

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
