// Compiled for each instruction set. A block of queries at a time: for the few thousand tokens of a bottleneck.
#include "cpu/attention3d.h"

#include "cpu/products.h"
#include "cpu/threads.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

static_assert(kQueries % kRows == 0, "a block of queries is whole rows of a product");

constexpr float kUnseen = -__builtin_inff();  // never the largest, also where all that is seen is as small

std::int64_t whole(std::int64_t count, std::int64_t step) { return (count + step - 1) / step * step; }

// Where element (row, column) of a matrix [inner][outer] lies in panels (products.h).
std::int64_t place(std::int64_t row, std::int64_t column, std::int64_t inner, std::int64_t outer) {
  constexpr std::int64_t kWide = kColumns * kLanes;
  const std::int64_t first = column / kWide * kWide;
  const std::int64_t width = outer - first < kWide ? outer - first : kWide;
  return first * inner + row * width + column - first;
}

// Keys [d][tokens] and values [tokens][d] of a head as panels; lanes beyond are zero.
void pack(const AttentionTask& task, std::int64_t n, float* keys, float* values) {
  const float *k = task.k + n * task.head_step, *v = task.v + n * task.head_step;
  const std::int64_t columns = whole(task.tokens, kLanes), width = whole(task.d, kLanes);
  for (std::int64_t t = 0; t < columns; ++t)
    for (std::int64_t c = 0; c < task.d; ++c)
      keys[place(c, t, task.d, columns)] = t < task.tokens ? k[t * task.step + c] * task.scale : 0.0f;
  for (std::int64_t t = 0; t < task.tokens; ++t)
    for (std::int64_t c = 0; c < width; ++c)
      values[place(t, c, task.tokens, width)] = c < task.d ? v[t * task.step + c] : 0.0f;
}

// Adds a query's bias to its scores, and takes away those of keys that it does not see.
void look(const AttentionTask& task, std::int64_t n, std::int64_t query, float* scores) {
  const std::int64_t* grid = task.grid;
  const std::int64_t at[3] = {query / (grid[1] * grid[2]), query / grid[2] % grid[1], query % grid[2]};
  std::int64_t first[3], end[3];
  for (int axis = 0; axis < 3; ++axis) {
    const std::int64_t wanted = at[axis] - task.window[axis] / 2, most = grid[axis] - task.window[axis];
    first[axis] = wanted < 0 ? 0 : wanted > most ? most : wanted;
    end[axis] = first[axis] + task.window[axis];
  }
  const std::int64_t high = 2 * grid[1] - 1, wide = 2 * grid[2] - 1, whole_table = (2 * grid[0] - 1) * high * wide;
  const float* table = task.bias != nullptr ? task.bias + n % task.bias_heads * whole_table : nullptr;
  for (std::int64_t d = 0; d < grid[0]; ++d) {
    for (std::int64_t h = 0; h < grid[1]; ++h) {
      float* row = scores + (d * grid[1] + h) * grid[2];
      const bool seen = d >= first[0] && d < end[0] && h >= first[1] && h < end[1];
      for (std::int64_t w = 0; w < (seen ? first[2] : grid[2]); ++w) row[w] = kUnseen;
      if (!seen) continue;
      for (std::int64_t w = end[2]; w < grid[2]; ++w) row[w] = kUnseen;
      if (table == nullptr) continue;
      const std::int64_t apart = (at[0] - d + grid[0] - 1) * high + at[1] - h + grid[1] - 1;
      const float* own = table + apart * wide + at[2] + grid[2] - 1;
      for (std::int64_t w = first[2]; w < end[2]; ++w) row[w] += own[-w];
    }
  }
}

struct Sum {
  float largest, total;
};

// In place: e^(score - largest), and their sum. Scores behind the last token become zero, unseen ones e^-87, which no
// sum of one or more sees.
Sum exponentials(float* scores, std::int64_t tokens, std::int64_t columns) {
  float largest = scores[0];
  for (std::int64_t t = 1; t < tokens; ++t) largest = scores[t] > largest ? scores[t] : largest;
  for (std::int64_t t = 0; t < columns; t += kLanes) store(scores + t, exponential(load(scores + t) - largest));
  for (std::int64_t t = tokens; t < columns; ++t) scores[t] = 0.0f;
  Vector sum = {};
  for (std::int64_t t = 0; t < columns; t += kLanes) sum += load(scores + t);
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return {largest, total};
}

void attend_block(const AttentionTask& task, std::int64_t n, std::int64_t first, const float* keys,
                  const float* values, float* workspace) {
  const std::int64_t columns = whole(task.tokens, kLanes), width = whole(task.d, kLanes);
  const std::int64_t left = task.tokens - first;
  const std::int64_t count = left < kQueries ? left : kQueries;
  float* queries = workspace;  // [kQueries][d]: the block's last rows may lie behind the last token
  float* scores = queries + kQueries * task.d;
  float* sums = scores + kQueries * columns;
  const float* q = task.q + n * task.head_step + first * task.step;
  for (std::int64_t i = 0; i < kQueries; ++i)
    for (std::int64_t c = 0; c < task.d; ++c) queries[i * task.d + c] = i < count ? q[i * task.step + c] : 0.0f;
  multiply({queries, task.d}, keys, {scores, columns}, count, task.d, columns);
  const bool all = task.window[0] == task.grid[0] && task.window[1] == task.grid[1] && task.window[2] == task.grid[2];
  float totals[kQueries];
  for (std::int64_t i = 0; i < count; ++i) {
    if (!all || task.bias != nullptr) look(task, n, first + i, scores + i * columns);
    const Sum sum = exponentials(scores + i * columns, task.tokens, columns);
    totals[i] = sum.total;
    if (task.log_sum != nullptr) task.log_sum[n * task.tokens + first + i] = sum.largest + __builtin_logf(sum.total);
  }
  for (std::int64_t i = count; i < whole(count, kRows); ++i)
    for (std::int64_t t = 0; t < columns; ++t) scores[i * columns + t] = 0.0f;
  multiply({scores, columns}, values, {sums, width}, count, task.tokens, width);
  for (std::int64_t i = 0; i < count; ++i) {
    float* out = task.out + n * task.out_head_step + (first + i) * task.out_step;
    for (std::int64_t c = 0; c < task.d; ++c) out[c] = sums[i * width + c] / totals[i];
  }
}

void forward(const AttentionTask& task) {
  const std::int64_t columns = whole(task.tokens, kLanes), width = whole(task.d, kLanes);
  const std::int64_t packed = columns * task.d + task.tokens * width;
  const std::int64_t own = kQueries * (task.d + columns + width);
  const std::int64_t blocks = (task.tokens + kQueries - 1) / kQueries;
  float* scratch = task.workspace + task.heads * packed;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t n = 0; n < task.heads; ++n) {
    float* keys = task.workspace + n * packed;
    pack(task, n, keys, keys + columns * task.d);
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < task.heads * blocks; ++unit) {
    const std::int64_t n = unit / blocks;
    const float* keys = task.workspace + n * packed;
    attend_block(task, n, unit % blocks * kQueries, keys, keys + columns * task.d, scratch + thread_number() * own);
  }
}

}  // namespace

const AttentionKernels attention3d = {forward};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
