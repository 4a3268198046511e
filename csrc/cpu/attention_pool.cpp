// Compiled for each instruction set. Keys are packed once for each head, in panels of kColumns vectors.
#include "cpu/attention_pool.h"

#include "cpu/threads.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

constexpr std::int64_t kWide = kColumns * kLanes;
static_assert(kPoolingColumns % kWide == 0 && kPoolingQueries % kRows == 0, "blocks are whole tiles of registers");

// Keys [tokens][d] to panels [columns / kWide][d][kWide], zeros behind the last.
void pack(const PoolingTask& task, std::int64_t head, float* keys) {
  const float* k = task.k + head * task.tokens * task.d;
  for (std::int64_t first = 0; first < pooling_columns(task.tokens); first += kWide)
    for (std::int64_t c = 0; c < task.d; ++c)
      for (std::int64_t i = 0; i < kWide; ++i)
        keys[first * task.d + c * kWide + i] = first + i < task.tokens ? k[(first + i) * task.d + c] : 0.0f;
}

// Scores of kRows queries for a panel of keys; `rows` of the queries are there, the last is taken for the others.
void score_tile(const PoolingTask& task, const float* q, std::int64_t rows, const float* panel, float* scores,
                std::int64_t columns) {
  const float* from[kRows];
  for (int i = 0; i < kRows; ++i) from[i] = q + (i < rows ? i : rows - 1) * task.d;
  Vector sum[kRows][kColumns] = {};
  for (std::int64_t c = 0; c < task.d; ++c) {
    Vector key[kColumns];
    for (int j = 0; j < kColumns; ++j) key[j] = load(panel + c * kWide + j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vector value = splat(from[i][c]);
      for (int j = 0; j < kColumns; ++j) sum[i][j] += value * key[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) store(scores + i * columns + j * kLanes, sum[i][j] * task.scale);
}

// Scores to e^(score - largest), in place; gives the logarithm of their sum, and 1 / the sum of what was written.
// Columns behind the last token become e^-87, which no sum of one or more sees.
float exponentials(float* scores, std::int64_t tokens, std::int64_t columns, float& log_sum) {
  for (std::int64_t t = tokens; t < columns; ++t) scores[t] = -__builtin_inff();
  Vector most = load(scores), sum = {};
  for (std::int64_t t = kLanes; t < columns; t += kLanes) {
    const Vector own = load(scores + t);
    most = select(own > most, own, most);
  }
  float largest = most[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  for (std::int64_t t = 0; t < columns; t += kLanes) {
    const Vector own = exponential(load(scores + t) - largest);
    store(scores + t, own);
    sum += own;
  }
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sum[lane]);
  log_sum = static_cast<float>(largest + __builtin_log(total));
  return static_cast<float>(1 / total);
}

// A block of a head's queries, added to what its slice looks at.
void add_block(const PoolingTask& task, std::int64_t head, std::int64_t first, const float* keys, float* scores,
               float* looked_at) {
  const std::int64_t columns = pooling_columns(task.tokens), left = task.tokens - first;
  const std::int64_t count = left < kPoolingQueries ? left : kPoolingQueries, at = head * task.tokens + first;
  for (std::int64_t row = 0; row < count; row += kRows)
    for (std::int64_t panel = 0; panel < columns; panel += kWide)
      score_tile(task, task.q + (at + row) * task.d, count - row, keys + panel * task.d,
                 scores + row * columns + panel, columns);
  float share[kPoolingQueries];
  for (std::int64_t i = 0; i < count; ++i)
    share[i] = exponentials(scores + i * columns, task.tokens, columns, task.log_sum[at + i]);
  for (std::int64_t t = 0; t < columns; t += kLanes) {
    Vector sum = {};
    for (std::int64_t i = 0; i < count; ++i) sum += load(scores + i * columns + t) * share[i];
    store(looked_at + t, load(looked_at + t) + sum);
  }
}

// The slices' sums together, and the tokens that they weigh.
void finish(const PoolingTask& task, std::int64_t head, const float* slices) {
  const std::int64_t columns = pooling_columns(task.tokens);
  float* looked_at = task.looked_at + head * task.tokens;
  for (std::int64_t t = 0; t < task.tokens; ++t) {
    float sum = 0;
    for (std::int64_t slice = 0; slice < kPoolingSlices; ++slice) sum += slices[slice * columns + t];
    looked_at[t] = sum / static_cast<float>(task.tokens);
  }
  const float* v = task.v + head * task.tokens * task.d;
  for (std::int64_t c = 0; c < task.d; c += kLanes) {
    const int count = lanes_left(c, task.d);
    Vector sum = {};
    for (std::int64_t t = 0; t < task.tokens; ++t) {
      const float* own = v + t * task.d + c;
      sum += load_some(own, count) * looked_at[t];
    }
    store_first(task.out + head * task.d + c, sum, count);
  }
}

void forward(const PoolingTask& task) {
  const std::int64_t columns = pooling_columns(task.tokens);
  float* keys = task.workspace;
  float* slices = keys + task.heads * columns * task.d;
  float* scratch = slices + task.heads * kPoolingSlices * columns;
#pragma omp parallel num_threads(task.threads)
  {
    float* scores = scratch + thread_number() * kPoolingQueries * columns;
#pragma omp for schedule(static)
    for (std::int64_t head = 0; head < task.heads; ++head) pack(task, head, keys + head * columns * task.d);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < task.heads * kPoolingSlices; ++unit) {
      const std::int64_t head = unit / kPoolingSlices;
      float* looked_at = slices + unit * columns;
      for (std::int64_t t = 0; t < columns; ++t) looked_at[t] = 0;
      for (std::int64_t first = unit % kPoolingSlices * kPoolingQueries; first < task.tokens;
           first += kPoolingSlices * kPoolingQueries)
        add_block(task, head, first, keys + head * columns * task.d, scores, looked_at);
    }
#pragma omp for schedule(static)
    for (std::int64_t head = 0; head < task.heads; ++head) finish(task, head, slices + head * kPoolingSlices * columns);
  }
}

}  // namespace

const PoolingKernels attention_pool = {forward};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
