#include "cpu/plane_fusion.h"

#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "bindings/convert.h"
#include "bindings/module.h"

namespace orthokernels::bindings {
namespace {

// A volume's shape by its memory: [samples, channels, D, H, W], or [samples, D, H, W, channels].
std::vector<std::int64_t> shape_of(std::int64_t samples, std::int64_t channels, cpu::Sides sides, bool last) {
  if (last) return {samples, sides.depth, sides.height, sides.width, channels};
  return {samples, channels, sides.depth, sides.height, sides.width};
}

void read_planes(const std::vector<py::object>& volumes, cpu::PlaneFusionTask& task) {
  if (volumes.size() != cpu::kPlanes) refuse("volumes", std::to_string(volumes.size()) + " of them; must be 3.");
  bool found = false;
  for (int p = 0; p < cpu::kPlanes; ++p) {
    if (volumes[p].is_none()) continue;
    if (!py::isinstance<py::array>(volumes[p])) refuse("volumes", "must be NumPy arrays or None.");
    const py::array volume = volumes[p].cast<py::array>();
    task.volume[p] = read("volumes", volume, {kAny, kAny, kAny, kAny, kAny});
    const int first = task.channels_last ? 1 : 2;
    const std::int64_t samples = volume.shape(0), channels = volume.shape(task.channels_last ? 4 : 1);
    if (found && (samples != task.samples || channels != task.channels))
      refuse("volumes", "differ in samples or channels.");
    task.samples = samples, task.channels = channels;
    task.plane[p] = {volume.shape(first), volume.shape(first + 1), volume.shape(first + 2)};
    found = true;
  }
  if (!found) refuse("volumes", "no plane is given.");
}

void plane_fusion(const std::vector<py::object>& volumes, const py::array& gates,
                  const std::vector<std::vector<std::vector<double>>>& to_plane, py::array& out, py::array& weights,
                  bool channels_last, std::int64_t threads) {
  cpu::PlaneFusionTask task{};
  task.channels_last = channels_last;
  read_planes(volumes, task);
  task.gates = read("gates", gates, {task.samples, cpu::kPlanes, kAny, kAny, kAny, kAny});
  task.groups = gates.shape(2);
  task.sides = {gates.shape(3), gates.shape(4), gates.shape(5)};
  if (task.channels % task.groups != 0) refuse("gates", "their groups do not divide the channels.");
  if (to_plane.size() != cpu::kPlanes) refuse("to_plane", "must be three matrices of 3 x 4.");
  for (int p = 0; p < cpu::kPlanes; ++p) {
    if (to_plane[p].size() != 3) refuse("to_plane", "must be three matrices of 3 x 4.");
    for (int row = 0; row < 3; ++row) {
      if (to_plane[p][row].size() != 4) refuse("to_plane", "must be three matrices of 3 x 4.");
      for (int column = 0; column < 4; ++column) task.to_plane[p][row][column] = to_plane[p][row][column];
    }
  }
  task.out = write("out", out, shape_of(task.samples, task.channels, task.sides, channels_last));
  const cpu::Sides sides = task.sides;
  task.weights =
      write("weights", weights, {task.samples, cpu::kPlanes, task.groups, sides.depth, sides.height, sides.width});
  task.threads = threads_from(threads);
  refuse_overlaps({{"out", out}, {"weights", weights}},
                  {{"gates", gates}, {"volumes", volumes[0]}, {"volumes", volumes[1]}, {"volumes", volumes[2]}});
  const cpu::PlaneFusionKernels& kernels = cpu::plane_fusion_for(cpu::best_isa());
  py::gil_scoped_release released;
  std::vector<cpu::Corners> corners(static_cast<std::size_t>(task.threads * task.sides.width * cpu::kPlanes));
  task.corners = corners.data();
  kernels.forward(task);
}

}  // namespace

void add_plane_fusion(py::module_& module) {
  module.def("plane_fusion", &plane_fusion, py::arg("volumes"), py::arg("gates"), py::arg("to_plane"), py::arg("out"),
             py::arg("weights"), py::kw_only(), py::arg("channels_last"), py::arg("threads") = 1,
             "Resample three planes' volumes, or None, onto the gates' grid and mix them; to_plane is [3, 3, 4].");
}

}  // namespace orthokernels::bindings
