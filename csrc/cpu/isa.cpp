#include "cpu/isa.h"

#include <cstdlib>
#include <string>

namespace orthokernels::cpu {
namespace {

bool runs(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
#ifndef ORTHOKERNELS_WITHOUT_AVX512
  if (isa == Isa::avx512)  // all that CMakeLists.txt compiles it with
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
#endif
  return isa == Isa::portable;
}

}  // namespace

const char* name_of(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable"; }

Isa best_isa() {
  const char* wish = std::getenv("ORTHOKERNELS_ISA");
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (wish != nullptr && *wish != '\0' && wish != std::string(name_of(isa))) continue;
    if (runs(isa)) return isa;
    if (wish != nullptr && *wish != '\0')
      throw std::invalid_argument(std::string("ORTHOKERNELS_ISA: this processor does not run ") + name_of(isa) + ".");
  }
  throw std::invalid_argument(std::string("ORTHOKERNELS_ISA: '") + wish + "'; there are portable, avx2 and avx512.");
}

}  // namespace orthokernels::cpu
