// Winograd's tiles, in boxes of neighbouring ones: what forward and the weights' gradient share. A box's input is read
// and transformed along width row by row, each voxel once, then every tile along height and depth.
#pragma once

#include <cstdint>

#include "cpu/conv3d.h"
#include "cpu/vector.h"
#include "cpu/winograd_lines.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {

// A box of tiles: the first of them, and how many there are along each axis.
struct Box {
  Sides first, tiles;
};

static inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

static inline std::int64_t pieces(std::int64_t side, std::int64_t piece) { return (side + piece - 1) / piece; }

// Tiles of the volume along each axis.
template <typename Deep, typename Plane>
Sides grid_of(Sides out) {
  return {pieces(out.depth, Deep::kMade), pieces(out.height, Plane::kMade), pieces(out.width, Plane::kMade)};
}

static inline std::int64_t boxes_of(Sides grid, Sides box) {
  return pieces(grid.depth, box.depth) * pieces(grid.height, box.height) * pieces(grid.width, box.width);
}

static inline Box box_of(Sides grid, Sides box, std::int64_t number) {
  const std::int64_t across = pieces(grid.width, box.width), down = pieces(grid.height, box.height);
  const Sides first{number / (across * down) * box.depth, number / across % down * box.height,
                    number % across * box.width};
  return {first, {least(box.depth, grid.depth - first.depth), least(box.height, grid.height - first.height),
                  least(box.width, grid.width - first.width)}};
}

// The places along an axis that some tiles read.
struct Reach {
  std::int64_t first, count;
};

template <typename Line>
Reach reach_of(std::int64_t first_tile, std::int64_t tiles) {
  constexpr std::int64_t kStep = Line::kMade * Line::kStride;
  return {first_tile * kStep - Line::kBefore, (tiles - 1) * kStep + Line::kPlaces};
}

// kLanes channels of a volume, from `x` on; scale and shift where they are normalised and activated. `ahead` of each
// voxel lies what is read after all these, whose fetch from memory begins here: no hardware sees these strides. 0:
// nothing.
struct Source {
  const float* x;
  std::int64_t channels;
  Vector scale, shift;
  std::int64_t ahead;
};

// A row of the box's input, from the volume's voxel `first` on, zeros outside.
template <bool kActivate>
void read_row(const Source& source, const float* volume_row, Reach across, std::int64_t width, float* row) {
  const std::int64_t before = across.first < 0 ? -across.first : 0;
  const std::int64_t inside = least(across.count, width - across.first);
  std::int64_t k = 0;
  for (; k < before; ++k) store(row + k * kLanes, Vector{});
  const float* from = volume_row + across.first * source.channels;
  for (; k < inside; ++k) {
    Vector value = load(from + k * source.channels);
    if (source.ahead != 0) __builtin_prefetch(from + k * source.channels + source.ahead, 0, 2);
    if (kActivate) value = silu(value * source.scale + source.shift);
    store(row + k * kLanes, value);
  }
  for (; k < across.count; ++k) store(row + k * kLanes, Vector{});
}

// Every row of the box's input along width, for kLanes channels: lines [slices][rows][tiles across][places] of vectors.
template <typename Deep, typename Plane, bool kActivate>
void transform_rows(Sides in, const Box& box, const Source& source, float* row, float* lines) {
  const Reach deep = reach_of<Deep>(box.first.depth, box.tiles.depth);
  const Reach down = reach_of<Plane>(box.first.height, box.tiles.height);
  const Reach across = reach_of<Plane>(box.first.width, box.tiles.width);
  const std::int64_t line = box.tiles.width * Plane::kPlaces * kLanes;
  for (std::int64_t d = deep.first; d < deep.first + deep.count; ++d) {
    for (std::int64_t h = down.first; h < down.first + down.count; ++h, lines += line) {
      if (d < 0 || d >= in.depth || h < 0 || h >= in.height) {
        for (std::int64_t at = 0; at < line; at += kLanes) store(lines + at, Vector{});
        continue;
      }
      read_row<kActivate>(source, source.x + (d * in.height + h) * in.width * source.channels, across, in.width, row);
      for (std::int64_t t = 0; t < box.tiles.width; ++t) {
        const float* from = row + t * Plane::kMade * Plane::kStride * kLanes;
        float* to = lines + t * Plane::kPlaces * kLanes;
        Vector x[Plane::kPlaces], v[Plane::kPlaces];
        ORTHOKERNELS_UNROLLED
        for (int k = 0; k < Plane::kPlaces; ++k) x[k] = load(from + k * kLanes);
        Plane::input(x, v);
        ORTHOKERNELS_UNROLLED
        for (int k = 0; k < Plane::kPlaces; ++k) store(to + k * kLanes, v[k]);
      }
    }
  }
}

// A tile's lines along height and depth, to places that lie `place_step` apart.
template <typename Deep, typename Plane>
void transform_tile(const float* lines, std::int64_t row_step, std::int64_t slice_step, float* v,
                    std::int64_t place_step) {
  for (int k = 0; k < Plane::kPlaces; ++k) {
    Vector t[Deep::kPlaces][Plane::kPlaces];
    for (int i = 0; i < Deep::kPlaces; ++i) {
      const float* from = lines + i * slice_step + k * kLanes;
      Vector x[Plane::kPlaces], made[Plane::kPlaces];
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < Plane::kPlaces; ++j) x[j] = load(from + j * row_step);
      Plane::input(x, made);
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < Plane::kPlaces; ++j) t[i][j] = made[j];
    }
    for (int j = 0; j < Plane::kPlaces; ++j) {
      Vector x[Deep::kPlaces], made[Deep::kPlaces];
      ORTHOKERNELS_UNROLLED
      for (int i = 0; i < Deep::kPlaces; ++i) x[i] = t[i][j];
      Deep::input(x, made);
      ORTHOKERNELS_UNROLLED
      for (int i = 0; i < Deep::kPlaces; ++i)
        store(v + ((i * Plane::kPlaces + j) * Plane::kPlaces + k) * place_step, made[i]);
    }
  }
}

// Where a box's transformed values go: kLanes channels of its first tile's first place, and the steps from there.
struct Transformed {
  float* first;
  std::int64_t tile_step, place_step;
};

// The input's transform of a box, for kLanes channels.
template <typename Deep, typename Plane, bool kActivate>
void transform_input(Sides in, const Box& box, const Source& source, float* row, float* lines, Transformed values) {
  transform_rows<Deep, Plane, kActivate>(in, box, source, row, lines);
  const std::int64_t row_step = box.tiles.width * Plane::kPlaces * kLanes;
  const std::int64_t slice_step = reach_of<Plane>(0, box.tiles.height).count * row_step;
  float* v = values.first;
  for (std::int64_t d = 0; d < box.tiles.depth; ++d)
    for (std::int64_t h = 0; h < box.tiles.height; ++h)
      for (std::int64_t w = 0; w < box.tiles.width; ++w, v += values.tile_step)
        transform_tile<Deep, Plane>(lines + d * Deep::kMade * Deep::kStride * slice_step +
                                        h * Plane::kMade * Plane::kStride * row_step + w * Plane::kPlaces * kLanes,
                                    row_step, slice_step, v, values.place_step);
}

// Where a tile begins in the output, and how much of it lies inside.
struct Place {
  Sides first, inside;
};

template <typename Deep, typename Plane>
Place place_of(Sides out, const Box& box, std::int64_t tile) {
  const std::int64_t across = box.tiles.width, down = box.tiles.height;
  const std::int64_t d = tile / (across * down), h = tile / across % down, w = tile % across;
  const Sides first{(box.first.depth + d) * Deep::kMade, (box.first.height + h) * Plane::kMade,
                    (box.first.width + w) * Plane::kMade};
  return {first, {least(Deep::kMade, out.depth - first.depth), least(Plane::kMade, out.height - first.height),
                  least(Plane::kMade, out.width - first.width)}};
}

static inline std::int64_t voxel_of(Sides out, const Place& place) {
  return (place.first.depth * out.height + place.first.height) * out.width + place.first.width;
}

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
