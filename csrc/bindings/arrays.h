// What Python hands in, looked at before anything is done with it: rank, shape, type, order in memory, alignment.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/memory.h"

namespace orthokernels::bindings {

namespace py = pybind11;

constexpr std::int64_t kAny = -1;  // a side that may be anything from 1 on

[[noreturn]] inline void refuse(const char* name, const std::string& why) {
  throw py::value_error(std::string(name) + ": " + why);
}

inline std::string told(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + (shape[i] == kAny ? std::string("any") : std::to_string(shape[i]));
  }
  return text + ")";
}

// A positive number that the arithmetic on places in memory can't overflow with.
inline std::int64_t size_from(const char* name, std::int64_t value, std::int64_t least = 1) {
  if (value < least || value > std::numeric_limits<std::int32_t>::max())
    refuse(name, std::to_string(value) + "; allowed are " + std::to_string(least) + " to 2147483647.");
  return value;
}

inline void check(const char* name, const py::array& array, const std::vector<std::int64_t>& shape) {
  if (!py::dtype::of<float>().equal(array.dtype()))
    refuse(name, "type " + py::str(array.dtype()).cast<std::string>() + "; must be float32.");
  std::vector<std::int64_t> own(array.shape(), array.shape() + array.ndim());
  bool fits = own.size() == shape.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] == kAny ? own[i] > 0 : own[i] == shape[i];
  if (!fits) refuse(name, "shape " + told(own) + "; must be " + told(shape) + ".");
  if (!(array.flags() & py::array::c_style)) refuse(name, "is not contiguous, the last axis fastest.");
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) != 0) refuse(name, "is not aligned to 4 bytes.");
}

inline const float* read(const char* name, const py::array& array, const std::vector<std::int64_t>& shape) {
  check(name, array, shape);
  return static_cast<const float*>(array.data());
}

// None is null.
inline const float* read_optional(const char* name, const py::object& given, const std::vector<std::int64_t>& shape) {
  if (given.is_none()) return nullptr;
  if (!py::isinstance<py::array>(given)) refuse(name, "must be a NumPy array or None.");
  return read(name, given.cast<py::array>(), shape);
}

// What is written is new as a rule, and a new volume's pages, 4 KiB each, can take longer to come than its values.
inline float* write(const char* name, py::array& array, const std::vector<std::int64_t>& shape) {
  check(name, array, shape);
  if (!array.writeable()) refuse(name, "is read-only.");
  cpu::ask_for_large_pages(array.mutable_data(), array.nbytes());
  return static_cast<float*>(array.mutable_data());
}

inline float* write_optional(const char* name, const py::object& given, const std::vector<std::int64_t>& shape) {
  if (given.is_none()) return nullptr;
  if (!py::isinstance<py::array>(given)) refuse(name, "must be a NumPy array or None.");
  py::array array = given.cast<py::array>();
  return write(name, array, shape);
}

inline int threads_from(std::int64_t threads) {
  if (threads < 1 || threads > 1024) refuse("threads", std::to_string(threads) + "; allowed are 1 to 1024.");
  return static_cast<int>(threads);
}

inline bool overlap(const float* a, std::int64_t a_count, const float* b, std::int64_t b_count) {
  return a < b + b_count && b < a + a_count;
}

// An array, or None, by its name.
using Named = std::pair<const char*, py::object>;

// What is written lies apart from everything that is read, and from everything else that is written. All are contiguous
// float32, as `read` and `write` have found.
inline void refuse_overlaps(const std::vector<Named>& written, const std::vector<Named>& read) {
  const auto apart = [](const Named& one, const Named& other, const char* what) {
    if (one.second.is_none() || other.second.is_none()) return;
    const py::array a = one.second.cast<py::array>(), b = other.second.cast<py::array>();
    if (overlap(static_cast<const float*>(a.data()), a.size(), static_cast<const float*>(b.data()), b.size()))
      refuse(one.first, std::string("overlaps ") + other.first + ", which is " + what + ".");
  };
  for (std::size_t i = 0; i < written.size(); ++i) {
    for (const Named& other : read) apart(written[i], other, "read");
    for (std::size_t j = i + 1; j < written.size(); ++j) apart(written[i], written[j], "written too");
  }
}

}  // namespace orthokernels::bindings
