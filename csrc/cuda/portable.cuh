// What lets arithmetic be compiled by nvcc and NVRTC for a GPU, and by a C++ compiler for tests of it on a CPU.
#pragma once

#ifdef __CUDACC__
#define ORTHO_DEVICE __device__ __forceinline__
#else
#include <math.h>
#define ORTHO_DEVICE inline
#endif
