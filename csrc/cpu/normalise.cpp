#include "cpu/normalise.h"

#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

void block_moments(const float* x, std::int64_t voxels, std::int64_t channels, float* moments) {
  const float n = static_cast<float>(voxels);
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    const int count = lanes_left(c, channels);
    const Vector pivot = load_some(x + c, count);
    Vector sum = {}, squares = {};
    for (std::int64_t v = 0; v < voxels; ++v) {
      const Vector apart = load_some(x + v * channels + c, count) - pivot;
      sum += apart;
      squares += apart * apart;
    }
    store_some(moments + c, splat(n), count);
    store_some(moments + channels + c, pivot + sum / n, count);
    store_some(moments + 2 * channels + c, squares - sum * sum / n, count);
  }
}

void moments(const float* x, std::int64_t voxels, std::int64_t channels, float* found, int threads) {
  const std::int64_t blocks = moment_blocks(voxels);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t first = b * kMomentVoxels, left = voxels - first;
    block_moments(x + first * channels, left < kMomentVoxels ? left : kMomentVoxels, channels,
                  found + b * 3 * channels);
  }
}

Vector activated(Vector z, Activation activation) {
  if (activation == Activation::silu) return silu(z);
  return activation == Activation::relu ? relu(z) : z;
}

// A voxel's channels of one volume; residual may be null.
void apply_part(const float* x, std::int64_t channels, const float* scale, const float* shift, const float* residual,
                Activation activation, float* y) {
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    const int count = lanes_left(c, channels);
    Vector z = load_some(x + c, count) * load_some(scale + c, count) + load_some(shift + c, count);
    if (residual != nullptr) z += load_some(residual + c, count);
    store_some(y + c, activated(z, activation), count);
  }
}

void apply(const NormaliseTask& task) {
  const std::int64_t channels = task.channels, whole = channels + task.skip_channels;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t v = 0; v < task.voxels; ++v) {
    const float* residual = task.residual != nullptr ? task.residual + v * channels : nullptr;
    apply_part(task.x + v * channels, channels, task.scale, task.shift, residual, task.activation, task.y + v * whole);
    if (task.skip != nullptr)
      apply_part(task.skip + v * task.skip_channels, task.skip_channels, task.scale + channels, task.shift + channels,
                 nullptr, task.activation, task.y + v * whole + channels);
  }
}

}  // namespace

const NormaliseKernels normalise = {moments, apply};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
