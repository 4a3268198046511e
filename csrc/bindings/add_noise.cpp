#include "cpu/add_noise.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/arrays.h"
#include "bindings/module.h"

namespace orthokernels::bindings {
namespace {

void add_noise(const py::array& x0, const py::array& shares, py::array& noisy, const py::object& noise,
               std::optional<std::int64_t> seed, std::int64_t step, std::int64_t threads) {
  cpu::NoisingTask task{};
  task.x0 = read("x0", x0, {kAny, kAny});
  task.samples = x0.shape(0);
  task.voxels = x0.shape(1);
  const std::vector<std::int64_t> volume{task.samples, task.voxels};
  task.shares = read("shares", shares, {task.samples, 2});
  task.noise = read_optional("noise", noise, volume);
  if (noise.is_none() != seed.has_value()) refuse("noise", "give it, or the seed that it is drawn from.");
  task.seed = static_cast<std::uint64_t>(seed.value_or(0));
  task.step = static_cast<std::uint32_t>(step);
  task.noisy = write("noisy", noisy, volume);
  task.threads = threads_from(threads);
  refuse_overlaps({{"noisy", noisy}}, {{"x0", x0}, {"shares", shares}, {"noise", noise}});
  const cpu::NoisingKernels& kernels = cpu::add_noise_for(cpu::best_isa());
  py::gil_scoped_release released;
  kernels.forward(task);
}

}  // namespace

void add_add_noise(py::module_& module) {
  module.def("add_noise", &add_noise, py::arg("x0"), py::arg("shares"), py::arg("noisy"), py::kw_only(),
             py::arg("noise") = py::none(), py::arg("seed") = py::none(), py::arg("step") = 0, py::arg("threads") = 1,
             "Noise x0 [samples, voxels], in whichever order they lie in memory.");
}

}  // namespace orthokernels::bindings
