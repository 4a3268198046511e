// Compiled for each instruction set. One read and one write; kNormals places at a time, as many as are drawn at once.
#include "cpu/denoise_step.h"

#include "cpu/philox.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

// A number that is none stays none, as in plain PyTorch.
inline float clamped(float x0, float bound) {
  const float above = x0 < -bound ? -bound : x0;
  return above > bound ? bound : above;
}

// Places `first` to `end`, at most kNormals, all of one sample.
void step_run(const StepTask& task, std::int64_t first, std::int64_t end, std::int64_t sample, const float* noise) {
  const std::int64_t count = end - first;
  const StepCoefficients c = task.coefficients;
  const float *x = task.x + first, *output = task.output + first;
  alignas(64) float x0[kNormals], next[kNormals];
  for (std::int64_t i = 0; i < count; ++i) x0[i] = c.x0_x * x[i] + c.x0_output * output[i];
  if (task.clip > 0)
    for (std::int64_t i = 0; i < count; ++i) x0[i] = clamped(x0[i], task.clip);
  if (task.threshold != nullptr) {
    const float s = task.threshold[sample];
    for (std::int64_t i = 0; i < count; ++i) x0[i] = clamped(x0[i], s) / s;
  }
  for (std::int64_t i = 0; i < count; ++i) next[i] = c.next_x * x[i] + c.next_output * output[i] + c.next_x0 * x0[i];
  if (task.previous != nullptr)
    for (std::int64_t i = 0; i < count; ++i) next[i] += c.next_previous * task.previous[first + i];
  if (task.noisy)
    for (std::int64_t i = 0; i < count; ++i) next[i] += c.next_noise * noise[i];
  for (std::int64_t i = 0; i < count; ++i) task.found[first + i] = next[i];
  if (task.x0 != nullptr)
    for (std::int64_t i = 0; i < count; ++i) task.x0[first + i] = x0[i];
}

void forward(const StepTask& task) {
  const std::int64_t size = task.samples * task.voxels;
#pragma omp parallel for schedule(static) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < (size + kNormals - 1) / kNormals; ++unit) {
    const std::int64_t start = unit * kNormals, end = start + kNormals < size ? start + kNormals : size;
    alignas(64) float noise[kNormals];
    if (task.noisy) draw_normals(start, task.step, task.seed, noise);
    for (std::int64_t first = start; first < end;) {
      const std::int64_t sample = first / task.voxels, behind = (sample + 1) * task.voxels;
      const std::int64_t last = behind < end ? behind : end;
      step_run(task, first, last, sample, noise + (first - start));
      first = last;
    }
  }
}

}  // namespace

const StepKernels denoise_step = {forward};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
