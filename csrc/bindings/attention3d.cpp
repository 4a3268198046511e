#include "cpu/attention3d.h"

#include <pybind11/stl.h>

#include <cmath>
#include <vector>

#include "bindings/convert.h"
#include "bindings/module.h"
#include "cpu/memory.h"

namespace orthokernels::bindings {
namespace {

void attention3d(const py::array& q, const py::array& k, const py::array& v, const std::vector<std::int64_t>& grid,
                 const std::vector<std::int64_t>& window, double scale, py::array& out, py::array& log_sum,
                 const py::object& bias, std::int64_t threads) {
  cpu::AttentionTask task{};
  task.q = read("q", q, {kAny, kAny, kAny});
  task.heads = q.shape(0);
  task.tokens = q.shape(1);
  task.d = q.shape(2);
  task.k = read("k", k, {task.heads, task.tokens, task.d});
  task.v = read("v", v, {task.heads, task.tokens, task.d});
  const cpu::Sides sides = sides_from(grid);
  if (sides.voxels() != task.tokens) refuse("grid", told(grid) + "; q has " + std::to_string(task.tokens) + " tokens.");
  if (window.size() != 3) refuse("window", told(window) + "; must be three numbers.");
  for (int axis = 0; axis < 3; ++axis) {
    if (window[axis] < 1 || window[axis] > grid[axis])
      refuse("window", told(window) + "; must be from 1 to the grid's " + told(grid) + ".");
    task.grid[axis] = grid[axis], task.window[axis] = window[axis];
  }
  if (!std::isfinite(scale)) refuse("scale", std::to_string(scale) + "; must be a number.");
  task.scale = static_cast<float>(scale);
  task.bias = read_optional("bias", bias, {kAny, 2 * grid[0] - 1, 2 * grid[1] - 1, 2 * grid[2] - 1});
  task.bias_heads = task.bias != nullptr ? bias.cast<py::array>().shape(0) : 1;
  if (task.heads % task.bias_heads != 0) refuse("bias", "its heads do not divide q's.");
  task.head_step = task.out_head_step = task.tokens * task.d;
  task.step = task.out_step = task.d;
  task.out = write("out", out, {task.heads, task.tokens, task.d});
  task.log_sum = write("log_sum", log_sum, {task.heads, task.tokens});
  task.threads = threads_from(threads);
  refuse_overlaps({{"out", out}, {"log_sum", log_sum}}, {{"q", q}, {"k", k}, {"v", v}, {"bias", bias}});
  const cpu::Isa isa = cpu::best_isa();
  py::gil_scoped_release released;
  const cpu::Floats workspace(static_cast<std::size_t>(
      cpu::attention_workspace_floats(task.tokens, task.heads, task.d, task.threads, isa)));
  task.workspace = workspace.data();
  cpu::attention3d_for(isa).forward(task);
}

}  // namespace

void add_attention3d(py::module_& module) {
  module.def("attention3d", &attention3d, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("grid"), py::arg("window"),
             py::arg("scale"), py::arg("out"), py::arg("log_sum"), py::kw_only(), py::arg("bias") = py::none(),
             py::arg("threads") = 1,
             "Attend over q, k and v [heads, tokens, d] of a grid; bias [bias heads, 2 D - 1, 2 H - 1, 2 W - 1].");
}

}  // namespace orthokernels::bindings
