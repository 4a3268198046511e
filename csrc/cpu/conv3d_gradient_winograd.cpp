// Sums over tiles of transformed inputs and output gradients, compiled for each instruction set. In each round threads
// share first the boxes' vectors of channels, to transform them, then the places, to add their outer products.
#include "cpu/conv3d_gradient.h"
#include "cpu/threads.h"
#include "cpu/vector.h"
#include "cpu/winograd_lines.h"
#include "cpu/winograd_tiles.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

constexpr int kProductRows = 4;                        // channels of the input, and vectors of those of the output,
constexpr int kProductColumns = kLanes == 16 ? 4 : 3;  // whose sums registers hold

// A tile's output gradients, zeros outside the volume, to places that lie `step` apart.
template <typename Deep, typename Plane>
void transform_gradient(Sides out, const Place& place, const float* dy, std::int64_t channels, float* u,
                        std::int64_t step) {
  constexpr int kPlane = Plane::kPlaces, kMade = Plane::kMade;
  const float* first = dy + voxel_of(out, place) * channels;
  Vector t[Deep::kMade][kPlane][kPlane];
  for (int i = 0; i < Deep::kMade; ++i) {
    Vector rows[kMade][kPlane];
    for (int j = 0; j < kMade; ++j) {
      Vector line[kMade], made[kPlane];
      const bool inside = i < place.inside.depth && j < place.inside.height;
      ORTHOKERNELS_UNROLLED
      for (int k = 0; k < kMade; ++k)
        line[k] = inside && k < place.inside.width
                      ? load(first + ((i * out.height + j) * out.width + k) * channels)
                      : Vector{};
      Plane::gradient(line, made);
      ORTHOKERNELS_UNROLLED
      for (int k = 0; k < kPlane; ++k) rows[j][k] = made[k];
    }
    for (int k = 0; k < kPlane; ++k) {
      Vector column[kMade], made[kPlane];
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < kMade; ++j) column[j] = rows[j][k];
      Plane::gradient(column, made);
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < kPlane; ++j) t[i][j][k] = made[j];
    }
  }
  for (int j = 0; j < kPlane; ++j) {
    for (int k = 0; k < kPlane; ++k) {
      Vector line[Deep::kMade], made[Deep::kPlaces];
      ORTHOKERNELS_UNROLLED
      for (int i = 0; i < Deep::kMade; ++i) line[i] = t[i][j][k];
      Deep::gradient(line, made);
      ORTHOKERNELS_UNROLLED
      for (int i = 0; i < Deep::kPlaces; ++i) store(u + ((i * kPlane + j) * kPlane + k) * step, made[i]);
    }
  }
}

// sums[kR][kC vectors] += values[tiles][kR]' gradients[tiles][kC vectors]
template <int kR, int kC>
void add_products(const float* values, const float* gradients, std::int64_t vector_step, float* sums,
                  std::int64_t row_step, std::int64_t tiles) {
  Vector sum[kR][kC];
  ORTHOKERNELS_UNROLLED
  for (int i = 0; i < kR; ++i)
    ORTHOKERNELS_UNROLLED
    for (int j = 0; j < kC; ++j) sum[i][j] = Vector{};
  for (std::int64_t t = 0; t < tiles; ++t) {
    Vector gradient[kC];
    ORTHOKERNELS_UNROLLED
    for (int j = 0; j < kC; ++j) gradient[j] = load(gradients + j * vector_step + t * kLanes);
    ORTHOKERNELS_UNROLLED
    for (int i = 0; i < kR; ++i) {
      const Vector value = splat(values[t * kLanes + i]);
      ORTHOKERNELS_UNROLLED
      for (int j = 0; j < kC; ++j) sum[i][j] += value * gradient[j];
    }
  }
  ORTHOKERNELS_UNROLLED
  for (int i = 0; i < kR; ++i)
    ORTHOKERNELS_UNROLLED
    for (int j = 0; j < kC; ++j) {
      float* at = sums + i * row_step + j * kLanes;
      store(at, load(at) + sum[i][j]);
    }
}

// One place's sums [in_channels][out_channels].
void add_place(const GradientTask& task, const float* values, const float* gradients, float* sums,
               std::int64_t tiles) {
  const std::int64_t vector_step = task.tiles * kLanes, out = task.out_channels;
  for (std::int64_t k = 0; k < out;) {
    const std::int64_t columns = least(kProductColumns, (out - k) / kLanes);
    const float* own = gradients + k * task.tiles;
    for (std::int64_t c = 0; c < task.in_channels; c += kProductRows) {
      const float* rows = values + c / kLanes * vector_step + c % kLanes;
      float* at = sums + c * out + k;
      if (columns == 1) add_products<kProductRows, 1>(rows, own, vector_step, at, out, tiles);
      if (columns == 2) add_products<kProductRows, 2>(rows, own, vector_step, at, out, tiles);
      if (columns == 3) add_products<kProductRows, 3>(rows, own, vector_step, at, out, tiles);
      if constexpr (kProductColumns > 3)
        if (columns == 4) add_products<kProductRows, 4>(rows, own, vector_step, at, out, tiles);
    }
    k += columns * kLanes;
  }
}

// Transform a box, `before` tiles behind the round's first, of one vector of channels: the input's, then the output's.
template <typename Deep, typename Plane>
void transform(const GradientTask& task, const Box& box, std::int64_t before, std::int64_t vector, float* own) {
  const std::int64_t in_vectors = task.in_channels / kLanes;
  if (vector < in_vectors) {
    const Source source{task.x + vector * kLanes, task.in_channels, Vector{}, Vector{}, 0};
    const Transformed values{task.values + (vector * task.tiles + before) * kLanes, kLanes, task.value_step};
    transform_input<Deep, Plane, false>(task.in, box, source, own, own + task.row_floats, values);
    return;
  }
  vector -= in_vectors;
  float* u = task.gradients + (vector * task.tiles + before) * kLanes;
  for (std::int64_t t = 0; t < box.tiles.voxels(); ++t, u += kLanes)
    transform_gradient<Deep, Plane>(task.out, place_of<Deep, Plane>(task.out, box, t), task.dy + vector * kLanes,
                                    task.out_channels, u, task.gradient_step);
}

template <typename Deep, typename Plane>
void run(const GradientTask& task) {
  constexpr std::int64_t kPlaces = Deep::kPlaces * Plane::kPlaces * Plane::kPlaces;
  const Sides grid = grid_of<Deep, Plane>(task.out);
  const std::int64_t boxes = boxes_of(grid, task.box);
  const std::int64_t vectors = (task.in_channels + task.out_channels) / kLanes;
  const auto tiles_between = [&](std::int64_t first, std::int64_t end) {
    std::int64_t tiles = 0;
    for (std::int64_t n = first; n < end; ++n) tiles += box_of(grid, task.box, n).tiles.voxels();
    return tiles;
  };
#pragma omp parallel num_threads(task.threads)
  for (std::int64_t first = 0; first < boxes; first += task.boxes) {
    const std::int64_t end = least(first + task.boxes, boxes), tiles = tiles_between(first, end);
    float* own = task.own + thread_number() * task.thread_floats;
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t n = 0; n < (end - first) * vectors; ++n) {
      const std::int64_t box = first + n / vectors;
      transform<Deep, Plane>(task, box_of(grid, task.box, box), tiles_between(first, box), n % vectors, own);
    }
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t place = 0; place < kPlaces; ++place)
      add_place(task, task.values + place * task.value_step, task.gradients + place * task.gradient_step,
                task.sums + place * task.in_channels * task.out_channels, tiles);
  }
}

void winograd(Algorithm algorithm, const GradientTask& task) {
  switch (algorithm) {
    case Algorithm::winograd222: return run<Line<2>, Line<2>>(task);
    case Algorithm::winograd144: return run<Line<1>, Line<4>>(task);
    case Algorithm::winograd244: return run<Line<2>, Line<4>>(task);
    case Algorithm::winograd444: return run<Line<4>, Line<4>>(task);
    case Algorithm::strided222: return run<StridedLine, StridedLine>(task);
    case Algorithm::direct: return;
  }
}

}  // namespace

const GradientKernels conv3d_gradient{winograd};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
