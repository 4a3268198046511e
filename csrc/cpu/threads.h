// Which of a parallel region's threads runs.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace orthokernels::cpu {

static inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace orthokernels::cpu
