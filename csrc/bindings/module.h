// Each op adds what it offers to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace orthokernels::bindings {

void add_add_noise(pybind11::module_& module);
void add_attention3d(pybind11::module_& module);
void add_attention_pool(pybind11::module_& module);
void add_conv3d(pybind11::module_& module);
void add_denoise_step(pybind11::module_& module);
void add_group_norm_silu(pybind11::module_& module);
void add_largest_class(pybind11::module_& module);
void add_plan(pybind11::module_& module);
void add_plane_fusion(pybind11::module_& module);
void add_upsample2x_trilinear(pybind11::module_& module);

}  // namespace orthokernels::bindings
