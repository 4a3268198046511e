#include "bindings/module.h"

#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/processor.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native CPU kernels of orthokernels";
  module.def("processor_features", &orthokernels::cpu::processor_features,
             "Vector extensions as (name, supported) pairs, in ascending order.");
  module.def("instruction_set", [] { return orthokernels::cpu::name_of(orthokernels::cpu::best_isa()); },
             "The instruction set that kernels use: avx512, avx2 or portable; ORTHOKERNELS_ISA asks for a lower one.");
  orthokernels::bindings::add_add_noise(module);
  orthokernels::bindings::add_attention3d(module);
  orthokernels::bindings::add_attention_pool(module);
  orthokernels::bindings::add_conv3d(module);
  orthokernels::bindings::add_denoise_step(module);
  orthokernels::bindings::add_group_norm_silu(module);
  orthokernels::bindings::add_largest_class(module);
  orthokernels::bindings::add_plan(module);
  orthokernels::bindings::add_plane_fusion(module);
  orthokernels::bindings::add_upsample2x_trilinear(module);
}
