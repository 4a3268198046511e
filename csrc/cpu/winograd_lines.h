// Winograd's transforms along one axis. A line's `input` makes kPlaces values of the kPlaces voxels that kMade outputs
// read, the first of them kBefore voxels before the first output's own; `output` makes kMade voxels of kPlaces sums;
// `gradient`, its transpose, makes kPlaces values of kMade voxels' gradients.
// What becomes of the kernel's taps is in winograd_variants.cpp, axis_of and strided_axis: the points are the same.
#pragma once

#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {

// F(M, 3), stride 1.
template <int M>
struct Line;

// One slice: nothing to transform, and only the kernel's middle is met.
template <>
struct Line<1> {
  static constexpr int kMade = 1, kPlaces = 1, kStride = 1, kBefore = 0;
  static inline void input(const Vector (&x)[1], Vector (&v)[1]) { v[0] = x[0]; }
  static inline void output(const Vector (&m)[1], Vector (&y)[1]) { y[0] = m[0]; }
  static inline void gradient(const Vector (&g)[1], Vector (&u)[1]) { u[0] = g[0]; }
};

// Points 0, 1, -1, infinity.
template <>
struct Line<2> {
  static constexpr int kMade = 2, kPlaces = 4, kStride = 1, kBefore = 1;
  static inline void input(const Vector (&x)[4], Vector (&v)[4]) {
    v[0] = x[0] - x[2];
    v[1] = x[1] + x[2];
    v[2] = x[2] - x[1];
    v[3] = x[3] - x[1];
  }
  static inline void output(const Vector (&m)[4], Vector (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
  static inline void gradient(const Vector (&g)[2], Vector (&u)[4]) {
    u[0] = g[0];
    u[1] = g[0] + g[1];
    u[2] = g[0] - g[1];
    u[3] = g[1];
  }
};

// Points 0, a, -a, b, -b, infinity with a = 2 / 3, b = 1 / a: a third of the error of 0, 1, -1, 2, -2.
template <>
struct Line<4> {
  static constexpr int kMade = 4, kPlaces = 6, kStride = 1, kBefore = 1;
  static constexpr float a = 2.0f / 3, b = 1.5f, a2 = 4.0f / 9, b2 = 2.25f;
  static inline void input(const Vector (&x)[6], Vector (&v)[6]) {
    const Vector even_a = x[4] - b2 * x[2], odd_a = x[3] - b2 * x[1];
    const Vector even_b = x[4] - a2 * x[2], odd_b = x[3] - a2 * x[1];
    v[0] = x[0] + x[4] - (a2 + b2) * x[2];
    v[1] = even_a + a * odd_a;
    v[2] = even_a - a * odd_a;
    v[3] = even_b + b * odd_b;
    v[4] = even_b - b * odd_b;
    v[5] = x[1] + x[5] - (a2 + b2) * x[3];
  }
  static inline void output(const Vector (&m)[6], Vector (&y)[4]) {
    const Vector sum_a = m[1] + m[2], sum_b = m[3] + m[4], apart_a = m[1] - m[2], apart_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = a * apart_a + b * apart_b;
    y[2] = a2 * sum_a + b2 * sum_b;
    y[3] = (a * a2) * apart_a + (b * b2) * apart_b + m[5];
  }
  static inline void gradient(const Vector (&g)[4], Vector (&u)[6]) {
    const Vector even_a = g[0] + a2 * g[2], odd_a = a * g[1] + (a * a2) * g[3];
    const Vector even_b = g[0] + b2 * g[2], odd_b = b * g[1] + (b * b2) * g[3];
    u[0] = g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[3];
  }
};

// Stride 2: output o meets the outer taps at the voxels before and behind 2 o, which other outputs share, so that they
// go by F(2, 2), points 0, -1 and infinity; and the middle tap at 2 o alone, where there is nothing to save: those
// voxels come last as they are.
struct StridedLine {
  static constexpr int kMade = 2, kPlaces = 5, kStride = 2, kBefore = 1;
  static inline void input(const Vector (&x)[5], Vector (&v)[5]) {
    v[0] = x[0] - x[2];
    v[1] = x[2];
    v[2] = x[4] - x[2];
    v[3] = x[1];
    v[4] = x[3];
  }
  static inline void output(const Vector (&m)[5], Vector (&y)[2]) {
    y[0] = m[0] + m[1] + m[3];
    y[1] = m[1] + m[2] + m[4];
  }
  static inline void gradient(const Vector (&g)[2], Vector (&u)[5]) {
    u[0] = g[0];
    u[1] = g[0] + g[1];
    u[2] = g[1];
    u[3] = g[0];
    u[4] = g[1];
  }
};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
