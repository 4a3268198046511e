// Attention with a mean over the queries in CUDA C++, forward and backward: the formulas of ops/attention_pool.py.
//
// Of T tokens and d channels a head: 3 T d numbers read at least, d + 2 T written. Forward 4 T^2 d operations: the
// scores are made once for the softmax's denominators (rows), once for the means over the queries (columns); the
// weighted sum is 2 T d (pooled). Backward 10 T^2 d: the scores twice, and three sums. A block of a gradient keeps 64
// channels, so that wider heads make the scores once for each 64.
//
// The floor is the arithmetic, in float32 outside the matrix units whatever the type: with 4,096 tokens and 16 heads of
// 64 channels 69 G operations forward, 1.0 millisecond at the 67 T operations a second of an H100's data sheet, where
// the bytes would take 8 microseconds in half precision. The Triton kernels use matrix units in half precision, and
// should be preferred there. The published pooling, 256 tokens and 16 heads of 16 channels, is 67 M operations:
// launches, not arithmetic.
//
// Version 1: a block of 256 threads owns 64 rows of the scores and walks over the columns, 64 at a time; a thread has
// 4 x 4 scores in registers. Rows are queries or keys, whichever the sums belong to, so that every sum stays in its
// block: lanes' sums are added by shuffles, in a fixed order, and two runs give the same bytes. No time was taken on a
// GPU.

#include "elements.cuh"
#include "softmax.cuh"

namespace {

constexpr int LANES = 16;                // threads along a side of a tile
constexpr int EACH = 4;                  // rows and columns of a thread, LANES apart
constexpr int SIDE = LANES * EACH;       // of a tile of scores
constexpr int THREADS = LANES * LANES;
constexpr int DEPTH = 16;                // channels that are staged at once
constexpr int PITCH = DEPTH + 4;         // four channels of eight neighbouring rows fall into different banks
constexpr int WIDTH = SIDE;              // channels of a gradient that a block keeps
constexpr int WEIGHT_PITCH = SIDE + 16;  // the two rows that a warp writes fall into different banks

// The tokens of one head; strides are in elements.
template <typename Element>
struct Tokens {
  const Element* at;
  long long of_token, of_channel, count, width;

  __device__ float operator()(long long token, long long channel) const {
    return token < count && channel < width ? widened(at[token * of_token + channel * of_channel]) : 0.0f;
  }
};

template <typename Element>
__device__ Tokens<Element> of_head(
    const Element* p, long long n, long long h, long long t, long long d, long long heads, long long count,
    long long width) {
  return {p + (blockIdx.x / heads) * n + (blockIdx.x % heads) * h, t, d, count, width};
}

// What belongs to a block's head, of ``numbers`` a head.
template <typename Number>
__device__ Number* of_head(Number* p, long long numbers) {
  return p + blockIdx.x * numbers;
}

struct __align__(16) Staged {
  float rows[SIDE][PITCH];
  float columns[SIDE][PITCH];
};

// Channels of SIDE tokens into shared memory, zeros where there are none. A thread keeps its channel and steps over
// tokens with one pointer: addresses that are computed anew for each would cost registers.
template <int CHANNELS, int ROW, typename Element>
__device__ void stage(
    float (&tile)[SIDE][ROW], const Tokens<Element>& tokens, long long first, long long first_channel) {
  constexpr int STEP = THREADS / CHANNELS;
  const int row = threadIdx.x / CHANNELS, channel = threadIdx.x % CHANNELS;
  const Element* at = tokens.at + (first + row) * tokens.of_token + (first_channel + channel) * tokens.of_channel;
  const long long left = first_channel + channel < tokens.width ? tokens.count - first - row : 0;
#pragma unroll 4
  for (int token = 0; token < SIDE; token += STEP) {
    tile[row + token][channel] = token < left ? widened(*at) : 0.0f;
    at += STEP * tokens.of_token;
  }
}

// Scores of rows lane_row + LANES i and columns lane + LANES j. Channels are summed in one order, whichever of the two
// are queries, so that the same pair has the same score in every kernel. Its first barrier also ends the tile before:
// what a caller shares among threads may be written anew afterwards.
template <typename Element>
__device__ void score(
    float (&scores)[EACH][EACH], Staged& staged, const Tokens<Element>& rows, long long first_row,
    const Tokens<Element>& columns, long long first_column, float scale) {
  const int lane = threadIdx.x % LANES, lane_row = threadIdx.x / LANES;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < EACH; ++j) scores[i][j] = 0.0f;
  }
  for (long long channel = 0; channel < rows.width; channel += DEPTH) {
    __syncthreads();
    stage<DEPTH>(staged.rows, rows, first_row, channel);
    stage<DEPTH>(staged.columns, columns, first_column, channel);
    __syncthreads();
#pragma unroll 1  // 64 products a turn are enough, and more turns at once would spill
    for (int c = 0; c < DEPTH; c += 4) {
      float4 column[EACH];
#pragma unroll
      for (int j = 0; j < EACH; ++j) {
        column[j] = *reinterpret_cast<const float4*>(&staged.columns[lane + LANES * j][c]);
      }
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const float4 row = *reinterpret_cast<const float4*>(&staged.rows[lane_row + LANES * i][c]);
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
          scores[i][j] = fmaf(row.x, column[j].x, scores[i][j]);
          scores[i][j] = fmaf(row.y, column[j].y, scores[i][j]);
          scores[i][j] = fmaf(row.z, column[j].z, scores[i][j]);
          scores[i][j] = fmaf(row.w, column[j].w, scores[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < EACH; ++j) scores[i][j] *= scale;
  }
}

// How many of a thread's columns exist, where ``left`` of the tile's do.
__device__ int columns_there(long long left) {
  const long long there = (left + LANES - 1 - static_cast<int>(threadIdx.x) % LANES) / LANES;
  return there < EACH ? static_cast<int>(there) : EACH;
}

__device__ float of_neighbour(float own, int away) { return __shfl_xor_sync(0xFFFFFFFFu, own, away); }

// The sum over the lanes of a row, the same bytes in each of them.
__device__ float over_lanes(float own) {
#pragma unroll
  for (int away = LANES / 2; away > 0; away /= 2) own += of_neighbour(own, away);
  return own;
}

// Logarithms of the denominators of a block of queries.
template <typename Element>
__device__ void rows(const Tokens<Element>& q, const Tokens<Element>& k, float* log_sum, float scale) {
  __shared__ Staged staged;
  const int lane = threadIdx.x % LANES, lane_row = threadIdx.x / LANES;
  const long long first_row = static_cast<long long>(blockIdx.y) * SIDE;
  Softmax running[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i) running[i] = no_scores();
  for (long long first = 0; first < k.count; first += SIDE) {
    float scores[EACH][EACH];
    score(scores, staged, q, first_row, k, first, scale);
    const int there = columns_there(k.count - first);
#pragma unroll
    for (int i = 0; i < EACH; ++i) absorb(running[i], scores[i], there);
  }
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int away = LANES / 2; away > 0; away /= 2) {
      const Softmax other = {of_neighbour(running[i].largest, away), of_neighbour(running[i].total, away)};
      running[i] = merged(running[i], other);
    }
    const long long row = first_row + lane_row + LANES * i;
    if (lane == 0 && row < q.count) log_sum[row] = log_sum_of(running[i]);
  }
}

// w of a block of keys, which are the rows here.
template <typename Element>
__device__ void columns(
    const Tokens<Element>& q, const Tokens<Element>& k, const float* log_sum, float* looked_at, float scale) {
  __shared__ Staged staged;
  const int lane = threadIdx.x % LANES, lane_row = threadIdx.x / LANES;
  const long long first_row = static_cast<long long>(blockIdx.y) * SIDE;
  float sums[EACH] = {};
  for (long long first = 0; first < q.count; first += SIDE) {
    float scores[EACH][EACH];
    score(scores, staged, k, first_row, q, first, scale);
    const int there = columns_there(q.count - first);
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      if (j >= there) continue;
      const float own = log_sum[first + lane + LANES * j];
#pragma unroll
      for (int i = 0; i < EACH; ++i) sums[i] += expf(scores[i][j] - own);
    }
  }
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const float sum = over_lanes(sums[i]);
    const long long row = first_row + lane_row + LANES * i;
    if (lane == 0 && row < k.count) looked_at[row] = sum / static_cast<float>(q.count);
  }
}

// The weighted sum of v, 32 channels a block; a warp takes every eighth token, and the warps are added in their order.
template <typename Element>
__device__ void pooled(const Tokens<Element>& v, const float* looked_at, Element* out) {
  constexpr int WARP = 32, WARPS = THREADS / WARP;
  __shared__ float parts[WARPS][WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const long long channel = static_cast<long long>(blockIdx.y) * WARP + lane;
  float sum = 0.0f;
  for (long long token = warp; token < v.count; token += WARPS) sum = fmaf(looked_at[token], v(token, channel), sum);
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || channel >= v.width) return;
#pragma unroll
  for (int w = 1; w < WARPS; ++w) sum += parts[w][lane];
  narrow(out[channel], sum);
}

template <typename Element>
__device__ void store_gradient(
    Element* to, const float (&sums)[EACH][EACH], float factor, long long first_row, long long first_channel,
    long long count, long long width) {
  const int lane = threadIdx.x % LANES, lane_row = threadIdx.x / LANES;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const long long row = first_row + lane_row + LANES * i;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const long long channel = first_channel + lane + LANES * j;
      if (row < count && channel < width) narrow(to[row * width + channel], sums[i][j] * factor);
    }
  }
}

// dq of a block of queries, and their r. sum p (g - r) k = sum p g k - r sum p k: one walk over the keys.
template <typename Element>
__device__ void row_gradients(
    const Tokens<Element>& q, const Tokens<Element>& k, const float* gain, const float* log_sum, float* seen,
    Element* dq, float scale) {
  __shared__ Staged staged;
  __shared__ float weights[SIDE][WEIGHT_PITCH], values[SIDE][WIDTH], gains[SIDE];
  const int lane = threadIdx.x % LANES, lane_row = threadIdx.x / LANES;
  const long long first_row = static_cast<long long>(blockIdx.y) * SIDE;
  const long long first_channel = static_cast<long long>(blockIdx.z) * WIDTH;
  __shared__ float log_sums[SIDE];
  float sums_seen[EACH] = {}, of_gain[EACH][EACH] = {}, of_keys[EACH][EACH] = {};
  if (threadIdx.x < SIDE) {
    const long long row = first_row + threadIdx.x;
    log_sums[threadIdx.x] = row < q.count ? log_sum[row] : 0.0f;
  }
  for (long long first = 0; first < k.count; first += SIDE) {
    float scores[EACH][EACH];
    score(scores, staged, q, first_row, k, first, scale);
    const int there = columns_there(k.count - first);
    if (threadIdx.x < SIDE) gains[threadIdx.x] = first + threadIdx.x < k.count ? gain[first + threadIdx.x] : 0.0f;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const float own_gain = j < there ? gain[first + lane + LANES * j] : 0.0f;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const float p = j < there ? expf(scores[i][j] - log_sums[lane_row + LANES * i]) : 0.0f;
        sums_seen[i] += p * own_gain;
        weights[lane_row + LANES * i][lane + LANES * j] = p;
      }
    }
    stage<WIDTH>(values, k, first, first_channel);
    __syncthreads();
#pragma unroll 2
    for (int column = 0; column < SIDE; ++column) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const float p = weights[lane_row + LANES * i][column], gained = p * gains[column];
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
          const float value = values[column][lane + LANES * j];
          of_gain[i][j] = fmaf(gained, value, of_gain[i][j]);
          of_keys[i][j] = fmaf(p, value, of_keys[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const float r = over_lanes(sums_seen[i]);
    const long long row = first_row + lane_row + LANES * i;
    if (blockIdx.z == 0 && lane == 0 && row < q.count) seen[row] = r;
#pragma unroll
    for (int j = 0; j < EACH; ++j) of_gain[i][j] -= r * of_keys[i][j];
  }
  store_gradient(dq, of_gain, scale / static_cast<float>(q.count), first_row, first_channel, q.count, q.width);
}

// dk of a block of keys, which are the rows here.
template <typename Element>
__device__ void column_gradients(
    const Tokens<Element>& q, const Tokens<Element>& k, const float* gain, const float* log_sum, const float* seen,
    Element* dk, float scale) {
  __shared__ Staged staged;
  __shared__ float weights[SIDE][WEIGHT_PITCH], values[SIDE][WIDTH];
  const int lane = threadIdx.x % LANES, lane_row = threadIdx.x / LANES;
  const long long first_row = static_cast<long long>(blockIdx.y) * SIDE;
  const long long first_channel = static_cast<long long>(blockIdx.z) * WIDTH;
  float own_gain[EACH], sums[EACH][EACH] = {};
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const long long row = first_row + lane_row + LANES * i;
    own_gain[i] = row < k.count ? gain[row] : 0.0f;
  }
  for (long long first = 0; first < q.count; first += SIDE) {
    float scores[EACH][EACH];
    score(scores, staged, k, first_row, q, first, scale);
    const int there = columns_there(q.count - first);
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const long long query = first + lane + LANES * j;
      const float own_log_sum = j < there ? log_sum[query] : 0.0f, r = j < there ? seen[query] : 0.0f;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const float ds = j < there ? expf(scores[i][j] - own_log_sum) * (own_gain[i] - r) : 0.0f;
        weights[lane_row + LANES * i][lane + LANES * j] = ds;
      }
    }
    stage<WIDTH>(values, q, first, first_channel);
    __syncthreads();
#pragma unroll 2
    for (int column = 0; column < SIDE; ++column) {
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const float ds = weights[lane_row + LANES * i][column];
#pragma unroll
        for (int j = 0; j < EACH; ++j) sums[i][j] = fmaf(ds, values[column][lane + LANES * j], sums[i][j]);
      }
    }
  }
  store_gradient(dk, sums, scale / static_cast<float>(q.count), first_row, first_channel, k.count, k.width);
}

}  // namespace

// Entries, named by their type. Grids are (N heads, tiles of rows, blocks of channels); tokens come with the strides of
// (N, heads, T, d), everything else is dense. Two blocks share a multiprocessor, with 128 registers a thread.
#define TOKENS(ELEMENT, p) const ELEMENT *p, long long p##_n, long long p##_h, long long p##_t, long long p##_d
#define HEAD(p) of_head(p, p##_n, p##_h, p##_t, p##_d, heads, count, width)
#define SIZES long long heads, long long count, long long width
#define ENTRY(KERNEL) extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_pool_##KERNEL

#define ATTENTION_POOL(TYPE, ELEMENT)                                                                                  \
  ENTRY(rows_##TYPE)(TOKENS(ELEMENT, q), TOKENS(ELEMENT, k), float* log_sum, SIZES, float scale) {                     \
    rows(HEAD(q), HEAD(k), of_head(log_sum, count), scale);                                                            \
  }                                                                                                                    \
  ENTRY(columns_##TYPE)(                                                                                               \
      TOKENS(ELEMENT, q), TOKENS(ELEMENT, k), const float* log_sum, float* looked_at, SIZES, float scale) {            \
    columns(HEAD(q), HEAD(k), of_head(log_sum, count), of_head(looked_at, count), scale);                              \
  }                                                                                                                    \
  ENTRY(pooled_##TYPE)(TOKENS(ELEMENT, v), const float* looked_at, ELEMENT* out, SIZES) {                              \
    pooled(HEAD(v), of_head(looked_at, count), of_head(out, width));                                                   \
  }                                                                                                                    \
  ENTRY(row_gradients_##TYPE)(                                                                                         \
      TOKENS(ELEMENT, q), TOKENS(ELEMENT, k), const float* gain, const float* log_sum, float* seen, ELEMENT* dq,       \
      SIZES, float scale) {                                                                                            \
    row_gradients(HEAD(q), HEAD(k), of_head(gain, count), of_head(log_sum, count), of_head(seen, count),               \
                  of_head(dq, count * width), scale);                                                                  \
  }                                                                                                                    \
  ENTRY(column_gradients_##TYPE)(                                                                                      \
      TOKENS(ELEMENT, q), TOKENS(ELEMENT, k), const float* gain, const float* log_sum, const float* seen,              \
      ELEMENT* dk, SIZES, float scale) {                                                                               \
    column_gradients(HEAD(q), HEAD(k), of_head(gain, count), of_head(log_sum, count), of_head(seen, count),            \
                     of_head(dk, count * width), scale);                                                               \
  }

ATTENTION_POOL(float32, float)
ATTENTION_POOL(float16, __half)
ATTENTION_POOL(bfloat16, __nv_bfloat16)
