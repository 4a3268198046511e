// Three planes resampled onto one grid and mixed by a gate, float32: ops/plane_fusion.py. Places are worked out in
// double precision, so that no voxel at a volume's end falls to the wrong side.
#pragma once

#include <cstdint>

#include "cpu/conv3d.h"
#include "cpu/isa.h"

namespace orthokernels::cpu {

constexpr int kPlanes = 3;

// Where a plane is met by a voxel of the result: 8 places among the plane's voxels, and their shares.
struct Corners {
  std::int64_t place[8];
  float share[8];
  bool inside;
};

struct PlaneFusionTask {
  std::int64_t samples, channels, groups;
  bool channels_last;            // of volumes and result; else channels first
  Sides sides;                   // of the result
  const float* volume[kPlanes];  // [samples] of a plane's voxels and channels; null for a missing plane
  Sides plane[kPlanes];
  double to_plane[kPlanes][3][4];
  const float* gates;            // [samples][planes][groups][voxels]
  float* out;
  float* weights;                // like gates
  Corners* corners;              // [threads][width][planes]
  int threads;
};

struct PlaneFusionKernels {
  void (*forward)(const PlaneFusionTask&);
};
ORTHOKERNELS_TABLES(PlaneFusionKernels, plane_fusion)

}  // namespace orthokernels::cpu
