#include "cpu/largest_class.h"

#include <vector>

#include "bindings/arrays.h"
#include "bindings/module.h"

namespace orthokernels::bindings {
namespace {

// In elements; an array of any order, views included.
std::int64_t stride(const py::array& array, int axis) { return array.strides(axis) / array.itemsize(); }

void check_axes(const char* name, const py::array& array, const py::dtype& type, int axes) {
  if (!type.equal(array.dtype())) refuse(name, "must be " + py::str(type).cast<std::string>() + ".");
  if (array.ndim() != axes) refuse(name, "must have " + std::to_string(axes) + " axes.");
  if (array.size() == 0) refuse(name, "is empty.");
  for (int axis = 0; axis < axes; ++axis)
    if (array.strides(axis) % array.itemsize() != 0) refuse(name, "has elements that are not aligned to each other.");
}

void largest_class(const py::array& logits, py::array& labels, std::int64_t threads) {
  check_axes("logits", logits, py::dtype::of<float>(), 3);
  check_axes("labels", labels, py::dtype::of<std::uint8_t>(), 2);
  if (logits.shape(0) > 256) refuse("logits", "has more than 256 classes.");
  if (reinterpret_cast<std::uintptr_t>(logits.data()) % alignof(float) != 0) refuse("logits", "is not aligned.");
  if (!labels.writeable()) refuse("labels", "is read-only.");
  cpu::LargestClassTask task{};
  task.logits = static_cast<const float*>(logits.data());
  task.classes = logits.shape(0), task.height = logits.shape(1), task.width = logits.shape(2);
  task.class_stride = stride(logits, 0), task.height_stride = stride(logits, 1), task.width_stride = stride(logits, 2);
  task.labels = static_cast<std::uint8_t*>(labels.mutable_data());
  task.rows = labels.shape(0), task.columns = labels.shape(1);
  task.row_stride = stride(labels, 0), task.column_stride = stride(labels, 1);
  task.threads = threads_from(threads);
  const cpu::LargestClassKernels& kernels = cpu::largest_class_for(cpu::best_isa());
  py::gil_scoped_release released;
  std::vector<double> workspace(
      static_cast<std::size_t>(cpu::largest_class_workspace(task.classes, task.columns, task.threads)));
  task.workspace = workspace.data();
  kernels.find(task);
}

}  // namespace

void add_largest_class(py::module_& module) {
  module.def("largest_class", &largest_class, py::arg("logits"), py::arg("labels"), py::kw_only(),
             py::arg("threads") = 1,
             "Write the class of the largest of logits [classes, height, width], sampled bilinearly at the pixels of "
             "labels [rows, columns], uint8; ties go to the lower. Both may be views.");
}

}  // namespace orthokernels::bindings
