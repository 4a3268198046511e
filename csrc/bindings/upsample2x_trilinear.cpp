#include "cpu/upsample2x_trilinear.h"

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "cpu/memory.h"

namespace orthokernels::bindings {
namespace {

// [samples, depth, height, width, channels]
std::vector<std::int64_t> small(const cpu::DoublingShape& shape) {
  return {shape.samples, shape.depth, shape.height, shape.width, shape.channels};
}

std::vector<std::int64_t> large(const cpu::DoublingShape& shape) {
  return {shape.samples, 2 * shape.depth, 2 * shape.height, 2 * shape.width, shape.channels};
}

cpu::DoublingShape shape_from(const char* name, const py::array& volume) {
  check(name, volume, {kAny, kAny, kAny, kAny, kAny});
  return {volume.shape(0), volume.shape(1), volume.shape(2), volume.shape(3), volume.shape(4)};
}

void run(void (*kernel)(const cpu::DoublingTask&), cpu::DoublingTask& task) {
  py::gil_scoped_release released;
  const cpu::Floats workspace(static_cast<std::size_t>(cpu::doubling_workspace(task.shape, task.threads)));
  task.workspace = workspace.data();
  kernel(task);
}

void upsample2x_trilinear(const py::array& x, py::array& y, std::int64_t threads) {
  cpu::DoublingTask task{};
  task.shape = shape_from("x", x);
  task.from = read("x", x, small(task.shape));
  task.to = write("y", y, large(task.shape));
  task.threads = threads_from(threads);
  refuse_overlaps({{"y", y}}, {{"x", x}});
  run(cpu::upsample2x_trilinear_for(cpu::best_isa()).forward, task);
}

void upsample2x_trilinear_backward(const py::array& dy, py::array& dx, std::int64_t threads) {
  cpu::DoublingTask task{};
  task.shape = shape_from("dx", dx);
  task.from = read("dy", dy, large(task.shape));
  task.to = write("dx", dx, small(task.shape));
  task.threads = threads_from(threads);
  refuse_overlaps({{"dx", dx}}, {{"dy", dy}});
  run(cpu::upsample2x_trilinear_for(cpu::best_isa()).backward, task);
}

}  // namespace

void add_upsample2x_trilinear(py::module_& module) {
  module.def("upsample2x_trilinear", &upsample2x_trilinear, py::arg("x"), py::arg("y"), py::kw_only(),
             py::arg("threads") = 1,
             "Double x [samples, depth, height, width, channels] into y; channels first are samples of one channel.");
  module.def("upsample2x_trilinear_backward", &upsample2x_trilinear_backward, py::arg("dy"), py::arg("dx"),
             py::kw_only(), py::arg("threads") = 1, "The gradient of what was doubled.");
}

}  // namespace orthokernels::bindings
