#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/processor.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native CPU kernels of orthokernels";
  module.def("processor_features", &orthokernels::cpu::processor_features,
             "Vector extensions as (name, supported) pairs, in ascending order.");
}
