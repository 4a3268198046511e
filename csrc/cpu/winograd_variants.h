// The variants of Winograd's algorithm as all instruction sets share them: tiles, the taps' transform, boxes.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/conv3d.h"

namespace orthokernels::cpu {

struct Variant {
  const char* name;
  std::int64_t depth, plane;  // voxels that a tile makes; 0 for direct
  int stride;                 // that it takes; 0: any
};

Variant variant_of(Algorithm algorithm);

// What the kernel's three taps become at each of the places along one axis (winograd_lines.h).
using TapRows = std::vector<std::vector<double>>;

TapRows tap_rows(std::int64_t made, int stride);

// Places that a tile reads along an axis and is transformed to.
std::int64_t places_along(std::int64_t made, int stride);

// Transformed places of a tile.
std::int64_t places_of(Algorithm algorithm);

// Voxels along an axis that so many tiles read, and are transformed from.
std::int64_t reach_along(std::int64_t tiles, std::int64_t made, int stride);

// Tiles of a volume along each axis.
Sides grid_of(Algorithm algorithm, Sides out);

// The box of at most so many tiles for which the volume is read, and boxes fetch so many weights, least often.
Sides box_for(std::int64_t tiles, Sides grid, const Variant& variant, std::int64_t in, std::int64_t weights);

inline std::int64_t up(std::int64_t value, std::int64_t divisor) { return (value + divisor - 1) / divisor; }

// Floats in whole cache lines.
inline std::int64_t whole_lines(std::int64_t floats) { return up(floats, 16) * 16; }

}  // namespace orthokernels::cpu
