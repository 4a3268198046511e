// Compiled for each instruction set. A row of the result at a time: the rows around it are added up along depth and
// height into a row that the first-level cache holds, which is then stretched, or gathered, along the width.
#include "cpu/upsample2x_trilinear.h"

#include "cpu/threads.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

std::int64_t clamped(std::int64_t place, std::int64_t side) {
  return place < 0 ? 0 : place >= side ? side - 1 : place;
}

// The places that one place gathers from along an axis, and their shares.
template <int kCount>
struct Gather {
  std::int64_t place[kCount];
  float share[kCount];
};

// Of the large volume's place `at`, from the small volume's.
Gather<2> around_large(std::int64_t at, std::int64_t side) {
  const std::int64_t here = at / 2;
  if (at % 2 == 0) return {{clamped(here - 1, side), here}, {0.25f, 0.75f}};
  return {{here, clamped(here + 1, side)}, {0.75f, 0.25f}};
}

// Of the small volume's place `at`, from the large volume's.
Gather<4> around_small(std::int64_t at, std::int64_t side) {
  const std::int64_t large = 2 * side;
  return {{clamped(2 * at - 1, large), 2 * at, 2 * at + 1, clamped(2 * at + 2, large)}, {0.25f, 0.75f, 0.75f, 0.25f}};
}

// row = sum of the plane's rows, each with its shares of depth and height.
template <int kCount>
void add_rows(const float* volume, std::int64_t height, std::int64_t width, const Gather<kCount>& planes,
              const Gather<kCount>& rows, float* row) {
  const float* from[kCount][kCount];
  for (int i = 0; i < kCount; ++i)
    for (int j = 0; j < kCount; ++j) from[i][j] = volume + (planes.place[i] * height + rows.place[j]) * width;
  std::int64_t at = 0;
  for (; at + kLanes <= width; at += kLanes) {
    Vector sum = {};
    for (int i = 0; i < kCount; ++i) {
      Vector plane = {};
      for (int j = 0; j < kCount; ++j) plane += load(from[i][j] + at) * rows.share[j];
      sum += plane * planes.share[i];
    }
    store(row + at, sum);
  }
  for (; at < width; ++at) {
    float sum = 0;
    for (int i = 0; i < kCount; ++i) {
      float plane = 0;
      for (int j = 0; j < kCount; ++j) plane += from[i][j][at] * rows.share[j];
      sum += plane * planes.share[i];
    }
    row[at] = sum;
  }
}

// kOne: channels are 1, so that the compiler sees neighbours.
template <bool kOne>
void stretch(const float* row, std::int64_t width, std::int64_t all_channels, float* to) {
  const std::int64_t channels = kOne ? 1 : all_channels;
  const auto write = [&](std::int64_t w, std::int64_t before, std::int64_t after) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const float here = row[w * channels + c];
      to[2 * w * channels + c] = 0.25f * row[before * channels + c] + 0.75f * here;
      to[(2 * w + 1) * channels + c] = 0.75f * here + 0.25f * row[after * channels + c];
    }
  };
  write(0, 0, clamped(1, width));
  for (std::int64_t w = 1; w < width - 1; ++w) write(w, w - 1, w + 1);
  if (width > 1) write(width - 1, width - 2, width - 1);
}

template <bool kOne>
void gather(const float* row, std::int64_t width, std::int64_t all_channels, float* to) {
  const std::int64_t channels = kOne ? 1 : all_channels;
  const auto write = [&](std::int64_t w, std::int64_t before, std::int64_t after) {
    for (std::int64_t c = 0; c < channels; ++c)
      to[w * channels + c] = 0.25f * row[before * channels + c] + 0.75f * row[2 * w * channels + c] +
                             0.75f * row[(2 * w + 1) * channels + c] + 0.25f * row[after * channels + c];
  };
  write(0, 0, clamped(2, 2 * width));
  for (std::int64_t w = 1; w < width - 1; ++w) write(w, 2 * w - 1, 2 * w + 2);
  if (width > 1) write(width - 1, 2 * width - 3, 2 * width - 1);
}

void forward(const DoublingTask& task) {
  const DoublingShape& shape = task.shape;
  const std::int64_t width = shape.width * shape.channels, rows = 4 * shape.depth * shape.height;
  const auto write = shape.channels == 1 ? stretch<true> : stretch<false>;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < shape.samples * rows; ++unit) {
    const std::int64_t sample = unit / rows, d = unit % rows / (2 * shape.height), h = unit % (2 * shape.height);
    float* row = task.workspace + thread_number() * 2 * width;
    add_rows(task.from + sample * shape.depth * shape.height * width, shape.height, width,
             around_large(d, shape.depth), around_large(h, shape.height), row);
    write(row, shape.width, shape.channels, task.to + unit * 2 * width);
  }
}

void backward(const DoublingTask& task) {
  const DoublingShape& shape = task.shape;
  const std::int64_t width = shape.width * shape.channels, rows = shape.depth * shape.height;
  const auto write = shape.channels == 1 ? gather<true> : gather<false>;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < shape.samples * rows; ++unit) {
    const std::int64_t sample = unit / rows, d = unit % rows / shape.height, h = unit % shape.height;
    float* row = task.workspace + thread_number() * 2 * width;
    add_rows(task.from + sample * 8 * shape.depth * shape.height * width, 2 * shape.height, 2 * width,
             around_small(d, shape.depth), around_small(h, shape.height), row);
    write(row, shape.width, shape.channels, task.to + unit * width);
  }
}

}  // namespace

const DoublingKernels upsample2x_trilinear = {forward, backward};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
