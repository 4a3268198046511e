// A block of queries at a time, its scores for all keys in the workspace: for the few hundred tokens of a bottleneck.
#include "cpu/attention.h"

#include "cpu/products.h"
#include "cpu/threads.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

static_assert(kQueries % kRows == 0, "a block of queries is whole rows of a product");

std::int64_t whole(std::int64_t count, std::int64_t step) { return (count + step - 1) / step * step; }

// Where element (row, column) of a matrix [inner][outer] lies in panels (products.h).
std::int64_t place(std::int64_t row, std::int64_t column, std::int64_t inner, std::int64_t outer) {
  constexpr std::int64_t kWide = kColumns * kLanes;
  const std::int64_t first = column / kWide * kWide;
  const std::int64_t width = outer - first < kWide ? outer - first : kWide;
  return first * inner + row * width + column - first;
}

struct Head {
  const float *q, *k, *v;
};

Head head_of(const AttentionTask& task, std::int64_t n) {
  if (task.heads_first) {
    const float* first = task.qkv + n * 3 * task.d;
    return {first, first + task.d, first + 2 * task.d};
  }
  const std::int64_t width = task.heads * task.d;
  const float* first = task.qkv + n * task.d;
  return {first, first + width, first + 2 * width};
}

// Keys [d][tokens] and values [tokens][d] of a head as panels; lanes beyond are zero.
void pack(const AttentionTask& task, const Head& head, float* keys, float* values) {
  const std::int64_t step = 3 * task.heads * task.d;
  const std::int64_t columns = whole(task.tokens, kLanes), width = whole(task.d, kLanes);
  for (std::int64_t t = 0; t < columns; ++t)
    for (std::int64_t c = 0; c < task.d; ++c)
      keys[place(c, t, task.d, columns)] = t < task.tokens ? head.k[t * step + c] * task.scale : 0.0f;
  for (std::int64_t t = 0; t < task.tokens; ++t)
    for (std::int64_t c = 0; c < width; ++c)
      values[place(t, c, task.tokens, width)] = c < task.d ? head.v[t * step + c] : 0.0f;
}

// In place: e^(score - largest); returns their sum. Scores behind the last token become zero.
float exponentials(float* scores, std::int64_t tokens, std::int64_t columns) {
  float largest = scores[0];
  for (std::int64_t t = 1; t < tokens; ++t) largest = scores[t] > largest ? scores[t] : largest;
  for (std::int64_t t = 0; t < columns; t += kLanes) store(scores + t, exponential(load(scores + t) - largest));
  for (std::int64_t t = tokens; t < columns; ++t) scores[t] = 0.0f;
  Vector sum = {};
  for (std::int64_t t = 0; t < columns; t += kLanes) sum += load(scores + t);
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

void attend_block(const AttentionTask& task, std::int64_t n, std::int64_t first, const float* keys,
                  const float* values, float* workspace) {
  const std::int64_t columns = whole(task.tokens, kLanes), width = whole(task.d, kLanes);
  const std::int64_t step = 3 * task.heads * task.d, left = task.tokens - first;
  const std::int64_t count = left < kQueries ? left : kQueries;
  float* queries = workspace;  // [kQueries][d]: the block's last rows may lie behind the last token
  float* scores = queries + kQueries * task.d;
  float* sums = scores + kQueries * columns;
  const Head head = head_of(task, n);
  for (std::int64_t i = 0; i < kQueries; ++i)
    for (std::int64_t c = 0; c < task.d; ++c)
      queries[i * task.d + c] = i < count ? head.q[(first + i) * step + c] : 0.0f;
  multiply({queries, task.d}, keys, {scores, columns}, count, task.d, columns);
  float totals[kQueries];
  for (std::int64_t i = 0; i < count; ++i) totals[i] = exponentials(scores + i * columns, task.tokens, columns);
  for (std::int64_t i = count; i < whole(count, kRows); ++i)
    for (std::int64_t t = 0; t < columns; ++t) scores[i * columns + t] = 0.0f;
  multiply({scores, columns}, values, {sums, width}, count, task.tokens, width);
  for (std::int64_t i = 0; i < count; ++i) {
    float* out = task.out + (first + i) * task.heads * task.d + n * task.d;
    for (std::int64_t c = 0; c < task.d; ++c) out[c] = sums[i * width + c] / totals[i];
  }
}

void attend(const AttentionTask& task) {
  const std::int64_t columns = whole(task.tokens, kLanes), width = whole(task.d, kLanes);
  const std::int64_t packed = columns * task.d + task.tokens * width;
  const std::int64_t own = kQueries * (task.d + columns + width);
  const std::int64_t blocks = (task.tokens + kQueries - 1) / kQueries;
  float* scratch = task.workspace + task.heads * packed;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t n = 0; n < task.heads; ++n) {
    float* keys = task.workspace + n * packed;
    pack(task, head_of(task, n), keys, keys + columns * task.d);
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < task.heads * blocks; ++unit) {
    const std::int64_t n = unit / blocks;
    const float* keys = task.workspace + n * packed;
    attend_block(task, n, unit % blocks * kQueries, keys, keys + columns * task.d, scratch + thread_number() * own);
  }
}

}  // namespace

const AttentionKernels attention = {attend};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
