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
  Vector sum[kR][kC];
  ORTHOKERNELS_UNROLLED
  for (int i = 0; i < kR; ++i)
    ORTHOKERNELS_UNROLLED
    for (int j = 0; j < kC; ++j) sum[i][j] = Vector{};
  for (std::int64_t c = 0; c < inner; ++c) {
    Vector weight[kC];
    ORTHOKERNELS_UNROLLED
    for (int j = 0; j < kC; ++j) weight[j] = load(b + (c * kC + j) * kLanes);
    ORTHOKERNELS_UNROLLED
    for (int i = 0; i < kR; ++i) {
      const Vector value = splat(a.first[i * a.step + c]);
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < kC; ++j) sum[i][j] += value * weight[j];
    }
  }
  ORTHOKERNELS_UNROLLED
  for (int i = 0; i < kR; ++i)
    ORTHOKERNELS_UNROLLED
    for (int j = 0; j < kC; ++j) store(sums.first + i * sums.step + j * kLanes, sum[i][j]);
}

// What is left of fewer than kRows rows.
template <int kR, int kC>
void multiply_rest(Rows a, const float* b, WritableRows sums, std::int64_t rows, std::int64_t inner) {
  if (rows == kR) multiply_tile<kR, kC>(a, b, sums, inner);
  else if constexpr (kR > 1) multiply_rest<kR - 1, kC>(a, b, sums, rows, inner);
}

template <int kC>
void multiply_panel(Rows a, const float* b, WritableRows sums, std::int64_t rows, std::int64_t inner) {
  std::int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    multiply_tile<kRows, kC>({a.first + row * a.step, a.step}, b, {sums.first + row * sums.step, sums.step}, inner);
  multiply_rest<kRows - 1, kC>({a.first + row * a.step, a.step}, b, {sums.first + row * sums.step, sums.step},
                               rows - row, inner);
}

// sums[rows][outer] = a[rows][inner] b[inner][outer], b in panels of kColumns vectors, the last one narrower, as
// Conv3d packs weights. outer is a multiple of kLanes.
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
