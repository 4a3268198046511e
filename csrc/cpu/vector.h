// Vectors of floats in the width of the instruction set that this translation unit is compiled for.
//
// GCC's and Clang's vector extensions: the same source is SSE2, AVX2, AVX-512 or NEON. Products that are added become
// fused multiply-adds where the target has them (-ffp-contract=fast).
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Before a loop over an array of vectors that must stay in registers: unrolled early, before GCC decides what does.
#define ORTHOKERNELS_UNROLLED _Pragma("GCC unroll 16")

namespace orthokernels::cpu::ORTHOKERNELS_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kColumns = 4;  // vectors of output channels that a micro-kernel keeps in registers, beside kRows voxels
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kColumns = 2;
#else
constexpr int kLanes = 4;
constexpr int kColumns = 2;
#endif
constexpr int kRows = 6;  // kRows * kColumns sums, kColumns weights and one value fit the registers of each target

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVector __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef std::int32_t Integers __attribute__((vector_size(kLanes * 4)));

static inline Vector load(const float* p) { return *reinterpret_cast<const UnalignedVector*>(p); }
static inline void store(float* p, Vector v) { *reinterpret_cast<UnalignedVector*>(p) = v; }

// Past the caches, to a multiple of the vector's bytes: nobody reads it soon, and the line is not fetched to be written.
// Before another thread reads it, end_streams().
static inline void stream(float* p, Vector v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  store(p, v);
#endif
}

static inline void end_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

static inline Vector splat(float value) { return value - Vector{}; }

// The first `count` lanes; the others are zero, and are not read.
static inline Vector load_first(const float* p, int count) {
  float lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

static inline void store_first(float* p, Vector v, int count) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// How many lanes a vector of channels from `at` on has before `end`.
static inline int lanes_left(std::int64_t at, std::int64_t end) {
  return end - at < kLanes ? static_cast<int>(end - at) : kLanes;
}

static inline Vector load_some(const float* p, int count) { return count == kLanes ? load(p) : load_first(p, count); }

static inline void store_some(float* p, Vector v, int count) {
  if (count == kLanes) store(p, v);
  else store_first(p, v, count);
}

static inline Vector select(Integers mask, Vector yes, Vector no) {
  return reinterpret_cast<Vector>((mask & reinterpret_cast<Integers>(yes)) | (~mask & reinterpret_cast<Integers>(no)));
}

// x between two bounds; NaN stays. GCC makes compares and blends of the plain words.
static inline Vector within(Vector x, float low, float high) {
#if defined(__AVX512F__)
  constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of the plain intrinsics' unused operand
  return _mm512_maskz_min_ps(kAll, splat(high), _mm512_maskz_max_ps(kAll, splat(low), x));
#elif defined(__AVX2__)
  return _mm256_min_ps(splat(high), _mm256_max_ps(splat(low), x));
#else
  x = select(x < splat(low), splat(low), x);
  return select(x > splat(high), splat(high), x);
#endif
}

// e^x within 2 units in the last place for x in [-87, 88], and nothing else.
static inline Vector exponential_inside(Vector x) {
  // x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer.
  const Vector magic = splat(12582912.0f);
  const Vector shifted = x * 1.44269504088896341f + magic;
  const Vector n = shifted - magic;
  Vector r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  // Minimax polynomial of degree 5 for (e^r - 1 - r) / r^2 (Cephes, expf).
  Vector p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers power = (reinterpret_cast<Integers>(shifted) - reinterpret_cast<Integers>(magic) + 127) << 23;
  return p * reinterpret_cast<Vector>(power);
}

// e^x within 2 units in the last place for x in [-87, 88]; beyond, the value at the bound.
static inline Vector exponential(Vector x) { return exponential_inside(within(x, -87.0f, 88.0f)); }

static inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential_inside(-within(x, -88.0f, 87.0f))); }
static inline Vector silu(Vector x) { return x * sigmoid(x); }
static inline Vector relu(Vector x) { return select(x < Vector{}, Vector{}, x); }  // NaN stays

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
