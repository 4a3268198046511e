// Unit normal noise by place in memory: Philox-4x32-10 (Salmon et al., SC 2011) through Box and Muller's transform,
// with the words of backends/torch/philox.py and csrc/cuda/philox.cuh; the normal numbers differ by the rounding of
// logarithm, sine and cosine. Compiled for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {

constexpr int kCounters = 64;            // that are drawn at once
constexpr int kNormals = 4 * kCounters;  // four neighbours share a counter

// The words of the counters (first + i, step, 0, 0), a word after the other.
static inline void philox(std::uint32_t first, std::uint32_t step, std::uint64_t seed,
                          std::uint32_t (&words)[4][kCounters]) {
  for (int i = 0; i < kCounters; ++i) {
    words[0][i] = first + static_cast<std::uint32_t>(i);
    words[1][i] = step;
    words[2][i] = words[3][i] = 0;
  }
  std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kCounters; ++i) {
      const std::uint64_t a = std::uint64_t{0xD2511F53} * words[0][i], b = std::uint64_t{0xCD9E8D57} * words[2][i];
      words[0][i] = static_cast<std::uint32_t>(b >> 32) ^ words[1][i] ^ key0;
      words[1][i] = static_cast<std::uint32_t>(b);
      words[2][i] = static_cast<std::uint32_t>(a >> 32) ^ words[3][i] ^ key1;
      words[3][i] = static_cast<std::uint32_t>(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// Words as numbers in [0, 1): their 31 lower bits, turned round where the highest is set.
static inline void uniform(const std::uint32_t (&words)[kCounters], float (&made)[kCounters]) {
  for (int i = 0; i < kCounters; ++i) {
    const std::uint32_t turned = (words[i] & 0x80000000u) != 0 ? ~words[i] : words[i];
    made[i] = static_cast<float>(static_cast<std::int32_t>(turned)) * 4.6566127342e-10f;
  }
}

// log(x) within 2 units in the last place, of normal positive numbers (Cephes, logf).
static inline Vector logarithm(Vector x) {
  const Integers bits = reinterpret_cast<Integers>(x);
  // x = 2^n m, m in [sqrt(1/2), sqrt(2)): 0x3F3504F3 is sqrt(1/2)
  const Integers n = (bits - 0x3F3504F3) >> 23;
  const Vector m = reinterpret_cast<Vector>(bits - n * (1 << 23)) - 1.0f;
  const Vector exponent = __builtin_convertvector(n, Vector), square = m * m;
  Vector p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Vector small = p * m * square + exponent * -2.12194440e-4f - 0.5f * square;
  return m + small + exponent * 0.693359375f;
}

// Sine and cosine of angles in [0, 7], within 1e-7 (Cephes, sinf and cosf).
static inline void sine_and_cosine(Vector angle, Vector& sine, Vector& cosine) {
  // The nearest quarter turn n; adding 1.5 * 2^23 rounds to an integer.
  const Vector magic = splat(12582912.0f);
  const Vector shifted = angle * 0.636619772367581343f + magic;
  const Vector n = shifted - magic;
  const Integers quarter = reinterpret_cast<Integers>(shifted);
  Vector r = angle - n * 1.5703125f;  // pi / 2 in three parts
  r = r - n * 4.837512969970703125e-4f;
  r = r - n * 7.549789948768648e-8f;
  const Vector square = r * r;
  const Vector s = r + r * square * (-1.6666654611e-1f + square * (8.3321608736e-3f + square * -1.9515295891e-4f));
  const Vector c = 1.0f - 0.5f * square + square * square * (4.166664568298827e-2f + square *
                   (-1.388731625493765e-3f + square * 2.443315711809948e-5f));
  const Integers odd = -(quarter & 1), turned = -((quarter >> 1) & 1), cosine_turned = turned ^ odd;
  const Integers sign = Integers{} + INT32_MIN;
  sine = reinterpret_cast<Vector>(reinterpret_cast<Integers>(select(odd, c, s)) ^ (turned & sign));
  cosine = reinterpret_cast<Vector>(reinterpret_cast<Integers>(select(odd, s, c)) ^ (cosine_turned & sign));
}

// Two unit normal numbers out of two uniform ones (Box & Muller 1958).
static inline void normal_pairs(const float (&first)[kCounters], const float (&second)[kCounters],
                                float (&cosines)[kCounters], float (&sines)[kCounters]) {
  alignas(64) float radius[kCounters], angle[kCounters];
  for (int i = 0; i < kCounters; i += kLanes) {
    const Vector u = load(first + i), least = splat(1.0e-7f);
    store(radius + i, -2.0f * logarithm(select(u < least, least, u)));
  }
  for (int i = 0; i < kCounters; ++i) {
    radius[i] = __builtin_sqrtf(radius[i]);
    angle[i] = 6.283185307179586f * second[i];
  }
  for (int i = 0; i < kCounters; i += kLanes) {
    Vector sine, cosine;
    sine_and_cosine(load(angle + i), sine, cosine);
    store(cosines + i, load(radius + i) * cosine);
    store(sines + i, load(radius + i) * sine);
  }
}

// The noise of kNormals places from `place` on, which is a multiple of 4.
static inline void draw_normals(std::int64_t place, std::uint32_t step, std::uint64_t seed, float* noise) {
  alignas(64) std::uint32_t words[4][kCounters];
  alignas(64) float numbers[4][kCounters], pairs[4][kCounters];
  philox(static_cast<std::uint32_t>(place / 4), step, seed, words);
  for (int n = 0; n < 4; ++n) uniform(words[n], numbers[n]);
  for (int n = 0; n < 4; n += 2) normal_pairs(numbers[n], numbers[n + 1], pairs[n], pairs[n + 1]);
  for (int i = 0; i < kCounters; ++i)
    for (int n = 0; n < 4; ++n) noise[4 * i + n] = pairs[n][i];
}

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
