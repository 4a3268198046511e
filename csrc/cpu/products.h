// Products of matrices with few registers' worth of rows: what Winograd's domain, attention and linear layers share.
#pragma once

#include <cstdint>

#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {

// Rows that lie `step` floats apart.
struct Rows {
  const float* first;
  std::int64_t step;
};

struct WritableRows {
  float* first;
  std::int64_t step;
};

// sums[kR][kC vectors] = a[kR][inner] b[inner][kC vectors]
template <int kR, int kC>
void multiply_tile(Rows a, const float* b, WritableRows sums, std::int64_t inner) {
  Vector sum[kR][kC] = {};
  for (std::int64_t c = 0; c < inner; ++c) {
    Vector weight[kC];
    for (int j = 0; j < kC; ++j) weight[j] = load(b + (c * kC + j) * kLanes);
    for (int i = 0; i < kR; ++i) {
      const Vector value = splat(a.first[i * a.step + c]);
      for (int j = 0; j < kC; ++j) sum[i][j] += value * weight[j];
    }
  }
  for (int i = 0; i < kR; ++i)
    for (int j = 0; j < kC; ++j) store(sums.first + i * sums.step + j * kLanes, sum[i][j]);
}

template <int kC>
void multiply_panel(Rows a, const float* b, WritableRows sums, std::int64_t rows, std::int64_t inner) {
  for (std::int64_t row = 0; row < rows; row += kRows)
    multiply_tile<kRows, kC>({a.first + row * a.step, a.step}, b, {sums.first + row * sums.step, sums.step}, inner);
}

// sums[rows][outer] = a[rows][inner] b[inner][outer], b in panels of kColumns vectors, the last one narrower, as
// Conv3d packs weights. outer is a multiple of kLanes. Rows are taken kRows at a time: a and sums must have room for
// whole ones; what is computed behind the last row is never read.
static inline void multiply(Rows a, const float* b, WritableRows sums, std::int64_t rows, std::int64_t inner,
                            std::int64_t outer) {
  std::int64_t first = 0;
  const auto panel = [&](auto multiply_columns) {
    multiply_columns(a, b + first * inner, WritableRows{sums.first + first, sums.step}, rows, inner);
  };
  for (; first + kColumns * kLanes <= outer; first += kColumns * kLanes) panel(multiply_panel<kColumns>);
  const std::int64_t rest = (outer - first) / kLanes;
  if (rest == 1) panel(multiply_panel<1>);
  if (kColumns > 2 && rest == 2) panel(multiply_panel<2>);
  if (kColumns > 3 && rest == 3) panel(multiply_panel<3>);
}

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
