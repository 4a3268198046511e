// A softmax's denominator, gathered score by score: exp(largest) total. No infinity is needed for what is not there.
#pragma once

#include "portable.cuh"

struct Softmax {
  float largest, total;
};

// Of no scores; the largest is the lowest of all floats, so that a difference with it is never inf - inf.
ORTHO_DEVICE Softmax no_scores() { return {-3.402823466e+38f, 0.0f}; }

// Take in the first ``count`` of a few scores.
template <int MOST>
ORTHO_DEVICE void absorb(Softmax& running, const float (&scores)[MOST], int count) {
  float larger = running.largest;
#pragma unroll
  for (int j = 0; j < MOST; ++j) larger = j < count ? fmaxf(larger, scores[j]) : larger;
  float total = running.total * expf(running.largest - larger);
#pragma unroll
  for (int j = 0; j < MOST; ++j) total += j < count ? expf(scores[j] - larger) : 0.0f;
  running = {larger, total};
}

ORTHO_DEVICE Softmax merged(Softmax a, Softmax b) {
  const float larger = fmaxf(a.largest, b.largest);
  return {larger, a.total * expf(a.largest - larger) + b.total * expf(b.largest - larger)};
}

// The denominator's logarithm.
ORTHO_DEVICE float log_sum_of(Softmax s) { return s.largest + logf(s.total); }
