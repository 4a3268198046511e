// A sampler's step in CUDA C++; the formulas stand in ops/denoise_step.py.
//
// Bytes, of a volume of B bytes: x and the network's output read, the next volume written, 3 B; DPM-Solver++(2M) reads
// and writes an x0 more. About 15 operations a voxel, and with noise a quarter of Philox's 10 rounds, and half of a
// logarithm, a root, a sine and a cosine. The floor is the memory: a float32 volume of 16 x 256 x 256 voxels is 12.6 MB
// a step, 3.8 microseconds at the 3.35 TB/s of an H100's data sheet.
//
// Version 1: a thread takes a run of 16 bytes of the narrower type, in 16-byte loads and stores where every volume
// begins at a multiple of 16 bytes, and one by one at the end or elsewhere. A run is 4 or 8 voxels, so that Philox's
// counters, which serve four neighbours, are never drawn twice. No time was taken on a GPU.

#include "elements.cuh"
#include "philox.cuh"
#include "step.cuh"

namespace {

constexpr int THREADS = 256;

// ``count`` of a run's elements as float32; the rest are zeros.
template <int RUN, typename Element>
__device__ void load(float (&values)[RUN], const Element* at, int count, bool vectors) {
  constexpr int WORD = 16 / sizeof(Element);
  if (vectors && count == RUN) {
#pragma unroll
    for (int first = 0; first < RUN; first += WORD) {
      const uint4 word = *reinterpret_cast<const uint4*>(at + first);
      const Element* own = reinterpret_cast<const Element*>(&word);
#pragma unroll
      for (int n = 0; n < WORD; ++n) values[first + n] = widened(own[n]);
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < RUN; ++n) values[n] = n < count ? widened(at[n]) : 0.0f;
}

template <int RUN, typename Element>
__device__ void store(Element* at, const float (&values)[RUN], int count, bool vectors) {
  constexpr int WORD = 16 / sizeof(Element);
  if (vectors && count == RUN) {
#pragma unroll
    for (int first = 0; first < RUN; first += WORD) {
      uint4 word;
      Element* own = reinterpret_cast<Element*>(&word);
#pragma unroll
      for (int n = 0; n < WORD; ++n) narrow(own[n], values[first + n]);
      *reinterpret_cast<uint4*>(at + first) = word;
    }
    return;
  }
#pragma unroll
  for (int n = 0; n < RUN; ++n) {
    if (n < count) narrow(at[n], values[n]);
  }
}

// x0 within its sample's s, and divided by it. A run may end in another sample than it begins in.
template <int RUN>
__device__ void threshold_run(
    float (&x0)[RUN], const float* threshold, long long place, int count, long long per_sample) {
  long long sample = place / per_sample, next = (sample + 1) * per_sample;
  float s = threshold[sample];
#pragma unroll
  for (int n = 0; n < RUN; ++n) {
    if (n < count && place + n == next) {
      s = threshold[++sample];
      next += per_sample;
    }
    x0[n] = clamped(x0[n], s) / s;
  }
}

// Pointers that are null are inputs or outputs that are not wanted; ``clip`` of 0 is none.
template <typename Volume, typename Output>
__device__ void step_run(
    const Volume* p_x, const Output* p_output, const Volume* p_previous, Volume* p_found, Volume* p_x0,
    const float* coefficients, const float* threshold, const long long* seed, long long size, long long per_sample,
    unsigned step, bool vectors, float clip) {
  constexpr int RUN = sizeof(Volume) == 2 || sizeof(Output) == 2 ? 8 : 4;
  const long long place = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * RUN;
  if (place >= size) return;
  const int count = size - place < RUN ? static_cast<int>(size - place) : RUN;
  const Coefficients c = {coefficients[0], coefficients[1], coefficients[2], coefficients[3],
                          coefficients[4], coefficients[5], coefficients[6]};
  float x[RUN], output[RUN], x0[RUN], found[RUN];
  load(x, p_x + place, count, vectors);
  load(output, p_output + place, count, vectors);
#pragma unroll
  for (int n = 0; n < RUN; ++n) x0[n] = clean(c, x[n], output[n]);
  if (clip > 0.0f) {
#pragma unroll
    for (int n = 0; n < RUN; ++n) x0[n] = clamped(x0[n], clip);
  }
  if (threshold != nullptr) threshold_run(x0, threshold, place, count, per_sample);
#pragma unroll
  for (int n = 0; n < RUN; ++n) found[n] = advanced(c, x[n], output[n], x0[n]);
  if (p_previous != nullptr) {
    float previous[RUN];
    load(previous, p_previous + place, count, vectors);
#pragma unroll
    for (int n = 0; n < RUN; ++n) found[n] += c.next_previous * previous[n];
  }
  if (seed != nullptr) {
#pragma unroll
    for (int n = 0; n < RUN; n += 4) {
      const Normals noise = normals(static_cast<unsigned>((place + n) / 4), step, *seed);
#pragma unroll
      for (int m = 0; m < 4; ++m) found[n + m] += c.next_noise * noise.at[m];
    }
  }
  store(p_found + place, found, count, vectors);
  if (p_x0 != nullptr) store(p_x0 + place, x0, count, vectors);
}

}  // namespace

// One entry for each pair of types, named by them.
#define DENOISE_STEP(X, VOLUME, Y, OUTPUT)                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS) denoise_step_##X##_##Y(                                    \
      const VOLUME* x, const OUTPUT* output, const VOLUME* previous, VOLUME* found, VOLUME* x0,                     \
      const float* coefficients, const float* threshold, const long long* seed, long long size,                    \
      long long per_sample, long long step, long long vectors, float clip) {                                       \
    step_run(x, output, previous, found, x0, coefficients, threshold, seed, size, per_sample,                      \
             static_cast<unsigned>(step), vectors != 0, clip);                                                     \
  }

DENOISE_STEP(float32, float, float32, float)
DENOISE_STEP(float32, float, float16, __half)
DENOISE_STEP(float32, float, bfloat16, __nv_bfloat16)
DENOISE_STEP(float16, __half, float32, float)
DENOISE_STEP(float16, __half, float16, __half)
DENOISE_STEP(float16, __half, bfloat16, __nv_bfloat16)
DENOISE_STEP(bfloat16, __nv_bfloat16, float32, float)
DENOISE_STEP(bfloat16, __nv_bfloat16, float16, __half)
DENOISE_STEP(bfloat16, __nv_bfloat16, bfloat16, __nv_bfloat16)
