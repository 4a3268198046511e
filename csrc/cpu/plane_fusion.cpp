// Compiled for each instruction set. A row of the result at a time: where it meets the planes, what each plane weighs
// there, then the channels.
#include "cpu/plane_fusion.h"

#include "cpu/threads.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

// A row of the result's voxels, of one sample.
struct Row {
  std::int64_t sample, start;  // of its first voxel
  const Corners* corners;      // [width][planes]
};

Corners corners_at(const PlaneFusionTask& task, int plane, std::int64_t d, std::int64_t h, std::int64_t w) {
  Corners found{};
  if (task.volume[plane] == nullptr) return found;
  const Sides& sides = task.plane[plane];
  const std::int64_t count[3] = {sides.depth, sides.height, sides.width};
  const double at[3] = {static_cast<double>(d), static_cast<double>(h), static_cast<double>(w)};
  std::int64_t low[3], high[3];
  double share[3];
  for (int axis = 0; axis < 3; ++axis) {
    const double* row = task.to_plane[plane][axis];
    const double last = static_cast<double>(count[axis] - 1);
    double c = row[3];
    for (int i = 0; i < 3; ++i) c += row[i] * at[i];
    if (!(c >= -0.5 && c <= last + 0.5)) return found;
    c = c < 0 ? 0 : c > last ? last : c;
    low[axis] = static_cast<std::int64_t>(c);
    high[axis] = low[axis] < count[axis] - 1 ? low[axis] + 1 : low[axis];
    share[axis] = c - static_cast<double>(low[axis]);
  }
  found.inside = true;
  for (int corner = 0; corner < 8; ++corner) {
    const bool up[3] = {(corner & 4) != 0, (corner & 2) != 0, (corner & 1) != 0};
    std::int64_t place = 0;
    double product = 1;
    for (int axis = 0; axis < 3; ++axis) {
      place = place * count[axis] + (up[axis] ? high[axis] : low[axis]);
      product *= up[axis] ? share[axis] : 1 - share[axis];
    }
    found.place[corner] = place;
    found.share[corner] = static_cast<float>(product);
  }
  return found;
}

// The planes' weights at a row's voxels, for one group: a softmax over those that are there.
void weigh(const PlaneFusionTask& task, const Row& row, std::int64_t group) {
  const std::int64_t voxels = task.sides.voxels(), plane_step = task.groups * voxels;
  const std::int64_t first = (row.sample * kPlanes * task.groups + group) * voxels + row.start;
  for (std::int64_t w = 0; w < task.sides.width; ++w) {
    const Corners* own = row.corners + w * kPlanes;
    const float* gate = task.gates + first + w;
    float* weight = task.weights + first + w;
    float largest = -3.0e38f, share[kPlanes], sum = 0;
    for (int p = 0; p < kPlanes; ++p)
      if (own[p].inside && gate[p * plane_step] > largest) largest = gate[p * plane_step];
    for (int p = 0; p < kPlanes; ++p) {
      share[p] = own[p].inside ? __builtin_expf(gate[p * plane_step] - largest) : 0.0f;
      sum += share[p];
    }
    for (int p = 0; p < kPlanes; ++p) weight[p * plane_step] = own[p].inside ? share[p] / sum : 0.0f;
  }
}

// A row's voxels, channels last: kLanes channels of a group at a time.
void mix_last(const PlaneFusionTask& task, const Row& row) {
  const std::int64_t voxels = task.sides.voxels(), channels = task.channels, wide = channels / task.groups;
  for (std::int64_t w = 0; w < task.sides.width; ++w) {
    const Corners* own = row.corners + w * kPlanes;
    float* out = task.out + (row.sample * voxels + row.start + w) * channels;
    for (std::int64_t group = 0; group < task.groups; ++group) {
      for (std::int64_t c = group * wide; c < (group + 1) * wide; c += kLanes) {
        const int count = lanes_left(c, (group + 1) * wide);
        Vector total = {};
        for (int p = 0; p < kPlanes; ++p) {
          if (!own[p].inside) continue;
          const float* volume = task.volume[p] + row.sample * task.plane[p].voxels() * channels + c;
          Vector sample = {};
          for (int corner = 0; corner < 8; ++corner)
            sample += load_some(volume + own[p].place[corner] * channels, count) * own[p].share[corner];
          total += sample * task.weights[((row.sample * kPlanes + p) * task.groups + group) * voxels + row.start + w];
        }
        store_some(out + c, total, count);
      }
    }
  }
}

// A row's voxels, channels first.
void mix_first(const PlaneFusionTask& task, const Row& row) {
  const std::int64_t voxels = task.sides.voxels(), wide = task.channels / task.groups;
  for (std::int64_t c = 0; c < task.channels; ++c) {
    float* out = task.out + (row.sample * task.channels + c) * voxels + row.start;
    for (std::int64_t w = 0; w < task.sides.width; ++w) {
      const Corners* own = row.corners + w * kPlanes;
      float total = 0;
      for (int p = 0; p < kPlanes; ++p) {
        if (!own[p].inside) continue;
        const float* volume = task.volume[p] + (row.sample * task.channels + c) * task.plane[p].voxels();
        float sample = 0;
        for (int corner = 0; corner < 8; ++corner) sample += volume[own[p].place[corner]] * own[p].share[corner];
        total += sample * task.weights[((row.sample * kPlanes + p) * task.groups + c / wide) * voxels + row.start + w];
      }
      out[w] = total;
    }
  }
}

void forward(const PlaneFusionTask& task) {
  const std::int64_t width = task.sides.width, rows = task.sides.depth * task.sides.height;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t n = 0; n < rows; ++n) {
    Corners* corners = task.corners + thread_number() * width * kPlanes;
    for (std::int64_t w = 0; w < width; ++w)
      for (int p = 0; p < kPlanes; ++p)
        corners[w * kPlanes + p] = corners_at(task, p, n / task.sides.height, n % task.sides.height, w);
    for (std::int64_t sample = 0; sample < task.samples; ++sample) {
      const Row row{sample, n * width, corners};
      for (std::int64_t group = 0; group < task.groups; ++group) weigh(task, row, group);
      if (task.channels_last) mix_last(task, row);
      else mix_first(task, row);
    }
  }
}

}  // namespace

const PlaneFusionKernels plane_fusion = {forward};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
