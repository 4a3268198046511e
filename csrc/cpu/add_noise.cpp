// Compiled for each instruction set. One read and one write; kNormals places at a time, as many as are drawn at once.
#include "cpu/add_noise.h"

#include "cpu/philox.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

// Places `first` to `end` of all volumes behind one another, their noise from noise[0] on.
void add_run(const NoisingTask& task, std::int64_t first, std::int64_t end, const float* noise) {
  while (first < end) {
    const std::int64_t sample = first / task.voxels, behind = (sample + 1) * task.voxels;
    const std::int64_t count = (behind < end ? behind : end) - first;
    const float signal = task.shares[2 * sample], share = task.shares[2 * sample + 1];
    const float* x0 = task.x0 + first;
    float* noisy = task.noisy + first;
    for (std::int64_t i = 0; i < count; ++i) noisy[i] = signal * x0[i] + share * noise[i];
    first += count;
    noise += count;
  }
}

void forward(const NoisingTask& task) {
  const std::int64_t size = task.samples * task.voxels;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < (size + kNormals - 1) / kNormals; ++unit) {
    const std::int64_t first = unit * kNormals, end = first + kNormals < size ? first + kNormals : size;
    alignas(64) float drawn[kNormals];
    if (task.noise == nullptr) draw_normals(first, task.step, task.seed, drawn);
    add_run(task, first, end, task.noise == nullptr ? drawn : task.noise + first);
  }
}

}  // namespace

const NoisingKernels add_noise = {forward};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
