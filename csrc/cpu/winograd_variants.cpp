#include "cpu/winograd_variants.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace orthokernels::cpu {
namespace {

// F(m, 3): at a point p of a polynomial (1, p, p^2) over the product of (p - q), q the other points.
TapRows axis_of(std::int64_t made) {
  if (made == 1) return {{0, 1, 0}};
  if (made == 2) return {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  const std::vector<double> points{0, 2.0 / 3, -2.0 / 3, 1.5, -1.5};
  TapRows rows;
  for (double p : points) {
    double product = 1;
    for (double q : points)
      if (q != p) product *= p - q;
    rows.push_back({1 / product, p / product, p * p / product});
  }
  rows.push_back({0, 0, 1});
  return rows;
}

// Stride 2: F(2, 2) of the outer taps, then the middle one, for each of both voxels.
TapRows strided_axis() { return {{1, 0, 0}, {1, 0, 1}, {0, 0, 1}, {0, 1, 0}, {0, 1, 0}}; }

// What boxes of so many tiles read along an axis of a volume of `grid` tiles.
std::int64_t read_along(std::int64_t grid, std::int64_t tiles, std::int64_t made, int stride) {
  return up(grid, tiles) * (std::min(tiles, grid) * made * stride + 2);
}

}  // namespace

Variant variant_of(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::direct: return {"direct", 0, 0, 0};
    case Algorithm::winograd222: return {"F(2,2,2)", 2, 2, 1};
    case Algorithm::winograd144: return {"F(1,4,4)", 1, 4, 1};
    case Algorithm::winograd244: return {"F(2,4,4)", 2, 4, 1};
    case Algorithm::winograd444: return {"F(4,4,4)", 4, 4, 1};
    case Algorithm::strided222: return {"F(2,2,2)/2", 2, 2, 2};
  }
  throw std::invalid_argument("algorithm: unknown");
}

TapRows tap_rows(std::int64_t made, int stride) { return stride == 1 ? axis_of(made) : strided_axis(); }

std::int64_t places_along(std::int64_t made, int stride) { return made == 1 ? 1 : (made - 1) * stride + 3; }

std::int64_t places_of(Algorithm algorithm) {
  const Variant variant = variant_of(algorithm);
  const std::int64_t plane = places_along(variant.plane, variant.stride);
  return places_along(variant.depth, variant.stride) * plane * plane;
}

std::int64_t reach_along(std::int64_t tiles, std::int64_t made, int stride) {
  return (tiles - 1) * made * stride + places_along(made, stride);
}

Sides grid_of(Algorithm algorithm, Sides out) {
  const Variant variant = variant_of(algorithm);
  return {up(out.depth, variant.depth), up(out.height, variant.plane), up(out.width, variant.plane)};
}

Sides box_for(std::int64_t tiles, Sides grid, const Variant& variant, std::int64_t in, std::int64_t weights) {
  constexpr double kRead = 1.5, kWeight = 0.05;  // cycles for a channel of a voxel, and for a weight
  Sides best{1, 1, 1};
  double least = INFINITY;
  for (std::int64_t depth = 1; depth <= std::min(tiles, grid.depth); ++depth)
    for (std::int64_t height = 1; height <= std::min(tiles / depth, grid.height); ++height) {
      const Sides box{depth, height, std::min(tiles / (depth * height), grid.width)};
      const double boxes = static_cast<double>(up(grid.depth, depth) * up(grid.height, height) *
                                               up(grid.width, box.width));
      const double read = static_cast<double>(read_along(grid.depth, depth, variant.depth, variant.stride) *
                                              read_along(grid.height, height, variant.plane, variant.stride) *
                                              read_along(grid.width, box.width, variant.plane, variant.stride));
      const double cost = kRead * read * static_cast<double>(in) + kWeight * boxes * static_cast<double>(weights);
      if (cost < least) least = cost, best = box;
    }
  return best;
}

}  // namespace orthokernels::cpu
