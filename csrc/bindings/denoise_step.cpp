#include "cpu/denoise_step.h"

#include <pybind11/stl.h>

#include <cmath>
#include <optional>

#include "bindings/arrays.h"
#include "bindings/module.h"

namespace orthokernels::bindings {
namespace {

void denoise_step(const py::array& x, const py::array& output, const py::array& coefficients, py::array& found,
                  const py::object& previous, const py::object& threshold, std::optional<std::int64_t> seed,
                  std::int64_t step, std::optional<double> clip, const py::object& x0, std::int64_t threads) {
  cpu::StepTask task{};
  task.x = read("x", x, {kAny, kAny});
  task.samples = x.shape(0);
  task.voxels = x.shape(1);
  const std::vector<std::int64_t> volume{task.samples, task.voxels};
  task.output = read("output", output, volume);
  const float* c = read("coefficients", coefficients, {7});
  task.coefficients = {c[0], c[1], c[2], c[3], c[4], c[5], c[6]};
  task.previous = read_optional("previous", previous, volume);
  task.threshold = read_optional("threshold", threshold, {task.samples});
  if (clip.has_value() && (!(*clip > 0) || !std::isfinite(*clip)))
    refuse("clip", std::to_string(*clip) + "; must be above 0.");
  if (clip.has_value() && task.threshold != nullptr) refuse("clip", "is given, and threshold too.");
  task.clip = static_cast<float>(clip.value_or(0));
  task.noisy = seed.has_value();
  task.seed = static_cast<std::uint64_t>(seed.value_or(0));
  task.step = static_cast<std::uint32_t>(step);
  task.found = write("found", found, volume);
  task.x0 = write_optional("x0", x0, volume);
  task.threads = threads_from(threads);
  refuse_overlaps({{"found", found}, {"x0", x0}},
                  {{"x", x}, {"output", output}, {"coefficients", coefficients}, {"previous", previous},
                   {"threshold", threshold}});
  const cpu::StepKernels& kernels = cpu::denoise_step_for(cpu::best_isa());
  py::gil_scoped_release released;
  kernels.forward(task);
}

}  // namespace

void add_denoise_step(py::module_& module) {
  module.def("denoise_step", &denoise_step, py::arg("x"), py::arg("output"), py::arg("coefficients"), py::arg("found"),
             py::kw_only(), py::arg("previous") = py::none(), py::arg("threshold") = py::none(),
             py::arg("seed") = py::none(), py::arg("step") = 0, py::arg("clip") = py::none(),
             py::arg("x0") = py::none(), py::arg("threads") = 1,
             "Step from x [samples, voxels], in whichever order they lie in memory, to the volume before it.");
}

}  // namespace orthokernels::bindings
