#include "cpu/largest_class.h"

#include <pybind11/stl.h>

#include <utility>
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

// From an array's first byte to behind its last, in any order.
std::pair<const char*, const char*> reach(const py::array& array) {
  const char *first = static_cast<const char*>(array.data()), *end = first + array.itemsize();
  for (int axis = 0; axis < array.ndim(); ++axis)
    (array.strides(axis) < 0 ? first : end) += array.strides(axis) * (array.shape(axis) - 1);
  return {first, end};
}

cpu::WeightedLogits weighted(const py::array& logits, float weight) {
  check_axes("logits", logits, py::dtype::of<float>(), 3);
  if (logits.shape(0) > cpu::kMostClasses) refuse("logits", "has more than 256 classes.");
  if (reinterpret_cast<std::uintptr_t>(logits.data()) % alignof(float) != 0) refuse("logits", "is not aligned.");
  return {static_cast<const float*>(logits.data()), stride(logits, 0), stride(logits, 1), stride(logits, 2), weight};
}

void largest_class(const std::vector<std::pair<py::array, float>>& logits, py::array& labels, std::int64_t threads) {
  if (logits.empty()) refuse("logits", "has no slab.");
  std::vector<cpu::WeightedLogits> slabs;
  const py::array& first = logits[0].first;
  for (const auto& [own, weight] : logits) {
    slabs.push_back(weighted(own, weight));
    for (int axis = 0; axis < 3; ++axis)
      if (own.shape(axis) != first.shape(axis)) refuse("logits", "has slabs of different shapes.");
  }
  check_axes("labels", labels, py::dtype::of<std::uint8_t>(), 2);
  if (!labels.writeable()) refuse("labels", "is read-only.");
  for (int axis = 0; axis < 2; ++axis) size_from("labels", labels.shape(axis));
  const auto [written, written_end] = reach(labels);
  for (const auto& [own, weight] : logits) {
    const auto [first_read, read_end] = reach(own);
    if (written < read_end && first_read < written_end) refuse("labels", "overlaps logits, which is read.");
  }
  cpu::LargestClassTask task{};
  task.logits = slabs.data(), task.slabs = static_cast<std::int64_t>(slabs.size());
  task.classes = first.shape(0), task.height = first.shape(1), task.width = first.shape(2);
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
             "Write the class of the largest logit at the pixels of labels [rows, columns], uint8; ties go to the lower. "
             "Logits are pairs of an array [classes, height, width], float32, and its weight, which are added and "
             "sampled bilinearly. All may be views.");
}

}  // namespace orthokernels::bindings
