// Winograd's algorithm in one, two or three dimensions at once, compiled for each instruction set.
//
// A box of neighbouring tiles goes through three steps in a workspace of its own: its input is read, completed and
// transformed along width row by row, each voxel once, then every tile along height and depth; for each of the
// transformed places, tiles x channels times channels x outputs; every tile's sums are transformed back, completed and
// written. winograd_tiles.h has boxes and the input's transform, winograd_lines.h the transforms along one axis.
//
// Ladder, 64 to 64 channels at 16 x 64 x 128 with SiLU, residual and moments, AVX2, one thread beside other work; time
// of the first over that of each: a row of 12 tiles, each read and transformed alone 1; boxes, sums in registers from
// their first to their last addition 1.15; sums over the values before them, bounds by min and max 1.2; input fetched
// ahead 1.38; output and residual fetched ahead in the order of the tiles 1.66. More input channels come in pieces
// (conv3d.cpp). What else was tried: bench/NOTES.md.
#include "cpu/conv3d.h"
#include "cpu/products.h"
#include "cpu/threads.h"
#include "cpu/vector.h"
#include "cpu/winograd_lines.h"
#include "cpu/winograd_tiles.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

constexpr std::int64_t kCacheLine = 16;  // floats

// The input's transform of a box, of one volume whose channels are the convolution's from `first` on and whose voxels
// lie `step` apart.
template <typename Deep, typename Plane>
void transform_volume(const ConvTask& task, const Box& box, const float* x, std::int64_t step, std::int64_t channels,
                      std::int64_t first, float* workspace) {
  const WinogradRoom& room = task.room;
  float *row = workspace + room.row, *lines = workspace + room.lines;
  const ConvInput& input = task.input;
  const std::int64_t next_box = box.tiles.width * Plane::kMade * Plane::kStride * step;
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    Source source{x + c, step, Vector{}, Vector{}, 0};
    if (c % kCacheLine == 0) source.ahead = c + kCacheLine < channels ? kCacheLine : next_box - c;
    const Transformed values{workspace + room.place_step + first + c, task.in_channels, room.place_step};
    if (input.scale != nullptr) {
      source.scale = load(input.scale + first + c), source.shift = load(input.shift + first + c);
      transform_input<Deep, Plane, true>(task.in, box, source, row, lines, values);
    } else {
      transform_input<Deep, Plane, false>(task.in, box, source, row, lines, values);
    }
  }
}

// Moments of a box's output for kLanes channels: values less a pivot, so that a large mean costs no digits. It is the
// mean of the first tile, whose own pivot is its first value: one that lies far from all others would cost theirs.
struct Gathered {
  Vector pivot, sum, squares;
};

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
  const std::int64_t first = voxel_of(task.out, place) * task.out_channels + channel;
  const bool goes_on = gathered != nullptr && !first_of_box;
  Gathered own{goes_on ? gathered->pivot : Vector{}, Vector{}, Vector{}};  // of this tile
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
  if (gathered == nullptr) return;
  if (goes_on) {
    gathered->sum += own.sum, gathered->squares += own.squares;
    return;
  }
  const Vector apart = own.sum / static_cast<float>(place.inside.voxels());
  *gathered = {own.pivot + apart, Vector{}, own.squares - apart * own.sum};
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
  transform_volume<Deep, Plane>(task, box, input.x, task.x_step, input.channels, 0, workspace);
  if (input.skip != nullptr)
    transform_volume<Deep, Plane>(task, box, input.skip, task.skip_step, input.skip_channels, input.channels,
                                  workspace);
  // A place's sums are written over the values of the place before it, so that half as much passes through the caches.
  const std::int64_t tiles = box.tiles.voxels();
  for (int place = 0; place < kPlaces; ++place)
    multiply({workspace + (place + 1) * step, in}, task.weights + place * in * out, {workspace + place * step, out},
             tiles, in, out);
  Gathered* gathered =
      task.output.moments != nullptr ? reinterpret_cast<Gathered*>(workspace + task.room.gathered) : nullptr;
  std::int64_t voxels = 0;
  for (std::int64_t t = 0; t < tiles; ++t) {
    const Place place = place_of<Deep, Plane>(task.out, box, t);
    const Place next = place_of<Deep, Plane>(task.out, box, t + 1 < tiles ? t + 1 : t);
    const std::int64_t next_tile = (voxel_of(task.out, next) - voxel_of(task.out, place)) * out;
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
  const Sides grid = grid_of<Deep, Plane>(task.out);
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
