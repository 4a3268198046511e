// Winograd's algorithm in one, two or three dimensions at once, compiled for each instruction set.
//
// A box of neighbouring tiles goes through three steps in a workspace of its own: its input is read, completed and
// transformed along width row by row, each voxel once, then every tile along height and depth; for each of the
// transformed places, tiles x channels times channels x outputs; every tile's sums are transformed back, completed and
// written. The lines of winograd_lines.h are the transforms along one axis.
//
// Ladder, 64 to 64 channels at 16 x 64 x 128 with SiLU, residual and moments, AVX2, one thread beside other work; time
// of the first over that of each: a row of 12 tiles, each read and transformed alone 1; boxes, sums in registers from
// their first to their last addition 1.15; sums over the values before them, bounds by min and max 1.2; input fetched
// ahead 1.38; output and residual fetched ahead in the order of the tiles 1.66. What else was tried: bench/NOTES.md.
#include "cpu/conv3d.h"
#include "cpu/products.h"
#include "cpu/threads.h"
#include "cpu/vector.h"
#include "cpu/winograd_lines.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

constexpr std::int64_t kCacheLine = 16;  // floats

// A box of tiles: the first of them, and how many there are along each axis.
struct Box {
  Sides first, tiles;
};

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

std::int64_t pieces(std::int64_t side, std::int64_t piece) { return (side + piece - 1) / piece; }

// Tiles of the volume along each axis.
template <typename Deep, typename Plane>
Sides grid_of(const ConvTask& task) {
  return {pieces(task.out.depth, Deep::kMade), pieces(task.out.height, Plane::kMade),
          pieces(task.out.width, Plane::kMade)};
}

std::int64_t boxes_of(Sides grid, Sides box) {
  return pieces(grid.depth, box.depth) * pieces(grid.height, box.height) * pieces(grid.width, box.width);
}

Box box_of(Sides grid, Sides box, std::int64_t number) {
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
void transform_rows(const ConvTask& task, const Box& box, const Source& source, float* row, float* lines) {
  const Reach deep = reach_of<Deep>(box.first.depth, box.tiles.depth);
  const Reach down = reach_of<Plane>(box.first.height, box.tiles.height);
  const Reach across = reach_of<Plane>(box.first.width, box.tiles.width);
  const std::int64_t line = box.tiles.width * Plane::kPlaces * kLanes;
  for (std::int64_t d = deep.first; d < deep.first + deep.count; ++d) {
    for (std::int64_t h = down.first; h < down.first + down.count; ++h, lines += line) {
      if (d < 0 || d >= task.in.depth || h < 0 || h >= task.in.height) {
        for (std::int64_t at = 0; at < line; at += kLanes) store(lines + at, Vector{});
        continue;
      }
      read_row<kActivate>(source, source.x + (d * task.in.height + h) * task.in.width * source.channels, across,
                          task.in.width, row);
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

// The input's transform of a box, of one volume whose channels are the convolution's from `first` on.
template <typename Deep, typename Plane>
void transform_volume(const ConvTask& task, const Box& box, const float* x, std::int64_t channels, std::int64_t first,
                      float* workspace) {
  const WinogradRoom& room = task.room;
  float *row = workspace + room.row, *lines = workspace + room.lines;
  const std::int64_t row_step = box.tiles.width * Plane::kPlaces * kLanes;
  const std::int64_t slice_step = reach_of<Plane>(0, box.tiles.height).count * row_step;
  const ConvInput& input = task.input;
  const std::int64_t next_box = box.tiles.width * Plane::kMade * Plane::kStride * channels;
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    Source source{x + c, channels, Vector{}, Vector{}, 0};
    if (c % kCacheLine == 0) source.ahead = c + kCacheLine < channels ? kCacheLine : next_box - c;
    if (input.scale != nullptr) {
      source.scale = load(input.scale + first + c), source.shift = load(input.shift + first + c);
      transform_rows<Deep, Plane, true>(task, box, source, row, lines);
    } else {
      transform_rows<Deep, Plane, false>(task, box, source, row, lines);
    }
    float* v = workspace + room.place_step + first + c;
    for (std::int64_t d = 0; d < box.tiles.depth; ++d)
      for (std::int64_t h = 0; h < box.tiles.height; ++h)
        for (std::int64_t w = 0; w < box.tiles.width; ++w, v += task.in_channels)
          transform_tile<Deep, Plane>(lines + d * Deep::kMade * Deep::kStride * slice_step +
                                          h * Plane::kMade * Plane::kStride * row_step + w * Plane::kPlaces * kLanes,
                                      row_step, slice_step, v, room.place_step);
  }
}

// Moments of a box's output for kLanes channels: values less a pivot, the first of them, so that a large mean costs no
// digits.
struct Gathered {
  Vector pivot, sum, squares;
};

// Where a tile begins in the output, and how much of it lies inside.
struct Place {
  Sides first, inside;
};

template <typename Deep, typename Plane>
Place place_of(const ConvTask& task, const Box& box, std::int64_t tile) {
  const std::int64_t across = box.tiles.width, down = box.tiles.height;
  const std::int64_t d = tile / (across * down), h = tile / across % down, w = tile % across;
  const Sides first{(box.first.depth + d) * Deep::kMade, (box.first.height + h) * Plane::kMade,
                    (box.first.width + w) * Plane::kMade};
  return {first, {least(Deep::kMade, task.out.depth - first.depth), least(Plane::kMade, task.out.height - first.height),
                  least(Plane::kMade, task.out.width - first.width)}};
}

std::int64_t voxel_of(const ConvTask& task, const Place& place) {
  return (place.first.depth * task.out.height + place.first.height) * task.out.width + place.first.width;
}

// A tile's sums, `place_step` apart, made rows and columns of the output: t [places along depth][made][made].
template <typename Deep, typename Plane>
void transform_planes(const float* m, std::int64_t place_step,
                      Vector (&t)[Deep::kPlaces][Plane::kMade][Plane::kMade]) {
  constexpr int kPlane = Plane::kPlaces, kMade = Plane::kMade;
  for (int i = 0; i < Deep::kPlaces; ++i) {
    Vector rows[kPlane][kMade];
    for (int j = 0; j < kPlane; ++j) {
      Vector row[kPlane], made[kMade];
      ORTHOKERNELS_UNROLLED
      for (int k = 0; k < kPlane; ++k) row[k] = load(m + ((i * kPlane + j) * kPlane + k) * place_step);
      Plane::output(row, made);
      ORTHOKERNELS_UNROLLED
      for (int k = 0; k < kMade; ++k) rows[j][k] = made[k];
    }
    for (int k = 0; k < kMade; ++k) {
      Vector column[kPlane], made[kMade];
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < kPlane; ++j) column[j] = rows[j][k];
      Plane::output(column, made);
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < kMade; ++j) t[i][j][k] = made[j];
    }
  }
}

// `ahead` of each voxel lies what is read and written after this; 0: nothing.
template <typename Deep, typename Plane>
void transform_output(const ConvTask& task, const Place& place, std::int64_t channel, std::int64_t ahead,
                      const float* m, Gathered* gathered, bool first_of_box) {
  Vector t[Deep::kPlaces][Plane::kMade][Plane::kMade];
  transform_planes<Deep, Plane>(m, task.room.place_step, t);
  const ConvOutput& output = task.output;
  const Vector bias = output.bias != nullptr ? load(output.bias + channel) : Vector{};
  const std::int64_t first = voxel_of(task, place) * task.out_channels + channel;
  Gathered own = gathered != nullptr && !first_of_box ? *gathered : Gathered{};
  for (int j = 0; j < place.inside.height; ++j) {
    for (int k = 0; k < place.inside.width; ++k) {
      Vector line[Deep::kPlaces], made[Deep::kMade];
      ORTHOKERNELS_UNROLLED
      for (int i = 0; i < Deep::kPlaces; ++i) line[i] = t[i][j][k];
      Deep::output(line, made);
      ORTHOKERNELS_UNROLLED
      for (int i = 0; i < Deep::kMade; ++i) {
        if (i >= place.inside.depth) break;
        const std::int64_t at = first + ((i * task.out.height + j) * task.out.width + k) * task.out_channels;
        Vector value = made[i] + bias;
        if (output.residual != nullptr) {
          value += load(output.residual + at);
          if (ahead != 0) __builtin_prefetch(output.residual + at + ahead);
        }
        store(output.y + at, value);
        if (ahead != 0) __builtin_prefetch(output.y + at + ahead, 1);
        if (gathered == nullptr) continue;
        if (first_of_box) own.pivot = value, first_of_box = false;
        const Vector apart = value - own.pivot;
        own.sum += apart;
        own.squares += apart * apart;
      }
    }
  }
  if (gathered != nullptr) *gathered = own;
}

void store_moments(const ConvTask& task, const Gathered* gathered, std::int64_t number, std::int64_t voxels) {
  const std::int64_t out = task.out_channels;
  float* moments = task.output.moments + number * 3 * out;
  const float n = static_cast<float>(voxels);
  for (std::int64_t k = 0; k < out; k += kLanes) {
    const Gathered& own = gathered[k / kLanes];
    store(moments + k, splat(n));
    store(moments + out + k, own.pivot + own.sum / n);
    store(moments + 2 * out + k, own.squares - own.sum * own.sum / n);
  }
}

template <typename Deep, typename Plane>
void make_box(const ConvTask& task, const Box& box, std::int64_t number, float* workspace) {
  constexpr int kPlaces = Deep::kPlaces * Plane::kPlaces * Plane::kPlaces;
  const std::int64_t in = task.in_channels, out = task.out_channels, step = task.room.place_step;
  const ConvInput& input = task.input;
  transform_volume<Deep, Plane>(task, box, input.x, input.channels, 0, workspace);
  if (input.skip != nullptr)
    transform_volume<Deep, Plane>(task, box, input.skip, input.skip_channels, input.channels, workspace);
  // A place's sums are written over the values of the place before it, so that half as much passes through the caches.
  const std::int64_t tiles = box.tiles.voxels();
  for (int place = 0; place < kPlaces; ++place)
    multiply({workspace + (place + 1) * step, in}, task.weights + place * in * out, {workspace + place * step, out},
             tiles, in, out);
  Gathered* gathered =
      task.output.moments != nullptr ? reinterpret_cast<Gathered*>(workspace + task.room.gathered) : nullptr;
  std::int64_t voxels = 0;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const Place place = place_of<Deep, Plane>(task, box, t);
    const Place next = place_of<Deep, Plane>(task, box, t + 1 < tiles ? t + 1 : t);
    const std::int64_t next_tile = (voxel_of(task, next) - voxel_of(task, place)) * out;
    for (std::int64_t k = 0; k < out; k += kLanes) {
      const std::int64_t ahead = k % kCacheLine != 0 ? 0 : k + kCacheLine < out ? kCacheLine : next_tile - k;
      transform_output<Deep, Plane>(task, place, k, ahead, workspace + t * out + k,
                                    gathered != nullptr ? gathered + k / kLanes : nullptr, t == 0);
    }
    voxels += place.inside.voxels();
  }
  if (gathered != nullptr) store_moments(task, gathered, number, voxels);
}

template <typename Deep, typename Plane>
void run(const ConvTask& task) {
  const Sides grid = grid_of<Deep, Plane>(task);
  const std::int64_t boxes = boxes_of(grid, task.box);
#pragma omp parallel for schedule(dynamic, 1) num_threads(task.threads)
  for (std::int64_t n = 0; n < boxes; ++n)
    make_box<Deep, Plane>(task, box_of(grid, task.box, n), n, task.workspace + thread_number() * task.room.floats);
}

}  // namespace

void winograd(Algorithm algorithm, const ConvTask& task) {
  switch (algorithm) {
    case Algorithm::winograd222: return run<Line<2>, Line<2>>(task);
    case Algorithm::winograd144: return run<Line<1>, Line<4>>(task);
    case Algorithm::winograd244: return run<Line<2>, Line<4>>(task);
    case Algorithm::winograd444: return run<Line<4>, Line<4>>(task);
    case Algorithm::strided222: return run<StridedLine, StridedLine>(task);
    case Algorithm::direct: return;
  }
}

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
