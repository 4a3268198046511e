#include "bindings/module.h"

#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/processor.h"

#if defined(_OPENMP) && defined(__GNUC__) && !defined(__clang__)
#include <omp.h>
#include <pthread.h>

// GNU's OpenMP keeps a region's threads for the next one, and a forked process, which has none of them, would wait for
// them without end. So they are ended before a fork, and both processes start threads anew.
static void fork_without_threads() {
  pthread_atfork([] { omp_pause_resource_all(omp_pause_hard); }, nullptr, nullptr);
}
#else
static void fork_without_threads() {}
#endif

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native CPU kernels of orthokernels";
  fork_without_threads();
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
