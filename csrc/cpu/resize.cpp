#include "cpu/resize.h"

#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

// The two places that an output place lies between, and how near it is to the second.
struct Between {
  std::int64_t first, second;
  float share;
};

Between between(std::int64_t place, std::int64_t in, std::int64_t out) {
  const float step = static_cast<float>(in) / static_cast<float>(out);
  float at = (static_cast<float>(place) + 0.5f) * step - 0.5f;
  if (at < 0.0f) at = 0.0f;
  std::int64_t first = static_cast<std::int64_t>(at);
  if (first > in - 1) first = in - 1;
  return {first, first < in - 1 ? first + 1 : first, at - static_cast<float>(first)};
}

void make_row(const float* x, Sides in, float* y, Sides out, std::int64_t channels, std::int64_t row) {
  const Between d = between(row / out.height, in.depth, out.depth);
  const Between h = between(row % out.height, in.height, out.height);
  const float* rows[4] = {x + (d.first * in.height + h.first) * in.width * channels,
                          x + (d.first * in.height + h.second) * in.width * channels,
                          x + (d.second * in.height + h.first) * in.width * channels,
                          x + (d.second * in.height + h.second) * in.width * channels};
  const float shares[4] = {(1 - d.share) * (1 - h.share), (1 - d.share) * h.share, d.share * (1 - h.share),
                           d.share * h.share};
  for (std::int64_t voxel = 0; voxel < out.width; ++voxel) {
    const Between w = between(voxel, in.width, out.width);
    float* made = y + (row * out.width + voxel) * channels;
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      const int count = lanes_left(c, channels);
      Vector sum = {};
      for (int n = 0; n < 4; ++n) {
        const float *one = rows[n] + w.first * channels + c, *two = rows[n] + w.second * channels + c;
        const Vector first = load_some(one, count), second = load_some(two, count);
        sum += shares[n] * ((1 - w.share) * first + w.share * second);
      }
      store_some(made + c, sum, count);
    }
  }
}

void trilinear(const float* x, Sides in, float* y, Sides out, std::int64_t channels, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t row = 0; row < out.depth * out.height; ++row) make_row(x, in, y, out, channels, row);
}

}  // namespace

const ResizeKernels resize = {trilinear};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
