#include "cpu/processor.h"

namespace orthokernels::cpu {

std::vector<std::pair<std::string, bool>> processor_features() {
#if defined(__x86_64__) || defined(__i386__)
  // The compiler's check reads CPUID and XGETBV: a feature whose registers the operating system does not save is off.
  __builtin_cpu_init();
  return {
      {"sse4.2", __builtin_cpu_supports("sse4.2") != 0},
      {"avx2", __builtin_cpu_supports("avx2") != 0},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0},
  };
#elif defined(__aarch64__)
  return {{"neon", true}};  // mandatory in the 64-bit Arm architecture
#else
  return {};
#endif
}

}  // namespace orthokernels::cpu
