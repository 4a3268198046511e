// What all instruction sets share of the weights' gradient: room, and the sums' way back to the taps.
#include "cpu/conv3d_gradient.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/memory.h"
#include "cpu/winograd_variants.h"

namespace orthokernels::cpu {
namespace {

constexpr std::int64_t kBoxTiles = 24;                       // enough that few voxels are read and transformed twice
constexpr std::int64_t kRoundBytes = std::int64_t{8} << 20;  // transformed tiles of a round, that caches hold
constexpr std::int64_t kLeastTiles = 64;                     // a sum is fetched and put back once for so many products

// Values at the points along one axis back to the three taps, each a run of `count` values.
void gather_taps(const TapRows& axis, const double* values, std::int64_t step, std::int64_t count, double* taps,
                 std::int64_t tap_step) {
  for (int tap = 0; tap < 3; ++tap) {
    double* to = taps + tap * tap_step;
    std::fill_n(to, count, 0.0);
    for (std::size_t at = 0; at < axis.size(); ++at) {
      const double* from = values + static_cast<std::int64_t>(at) * step;
      for (std::int64_t n = 0; n < count; ++n) to[n] += axis[at][tap] * from[n];
    }
  }
}

// A run of outputs at a time, a cache line's where it can: their sums lie side by side in every place.
void gather(const float* sums, float* dw, std::int64_t out, std::int64_t in, Algorithm algorithm, std::int64_t lanes,
            int threads) {
  if (out % 16 == 0) lanes = 16;
  const Variant variant = variant_of(algorithm);
  const TapRows deep = tap_rows(variant.depth, variant.stride), plane = tap_rows(variant.plane, variant.stride);
  const std::int64_t places = places_of(algorithm), side = static_cast<std::int64_t>(plane.size());
  const std::int64_t row = side * lanes, slice = side * row;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t k = 0; k < out; k += lanes) {
    std::vector<double> found(places * lanes), along_d(3 * slice), along_h(9 * row), taps(27 * lanes);
    for (std::int64_t c = 0; c < in; ++c) {
      for (std::int64_t place = 0; place < places; ++place)
        std::copy_n(sums + (place * in + c) * out + k, lanes, &found[place * lanes]);
      gather_taps(deep, found.data(), slice, slice, along_d.data(), slice);
      for (std::int64_t d = 0; d < 3; ++d)
        gather_taps(plane, &along_d[d * slice], row, row, &along_h[d * 3 * row], row);
      for (std::int64_t line = 0; line < 9; ++line)
        gather_taps(plane, &along_h[line * row], lanes, lanes, &taps[line * 3 * lanes], lanes);
      for (std::int64_t lane = 0; lane < lanes; ++lane)
        for (std::int64_t tap = 0; tap < 27; ++tap)
          dw[((k + lane) * in + c) * 27 + tap] = static_cast<float>(taps[tap * lanes + lane]);
    }
  }
}

}  // namespace

void weight_gradient(const float* x, const float* dy, float* dw, Sides sides, std::int64_t out, std::int64_t in,
                     int stride, Algorithm algorithm, Isa isa, int threads) {
  const char* reason = algorithm == Algorithm::direct ? "the weights' gradient goes by Winograd's alone"
                                                      : Conv3d::unfit(algorithm, out, in, 3, stride, sides, isa);
  if (reason != nullptr)
    throw std::invalid_argument(std::string("algorithm: ") + name_of(algorithm) + ": " + reason + ".");
  isa = winograd_isa(isa, out, in, 0);
  const Variant variant = variant_of(algorithm);
  const std::int64_t places = places_of(algorithm), lanes = lanes_of(isa);
  GradientTask task{};
  task.in = sides, task.out = {up(sides.depth, stride), up(sides.height, stride), up(sides.width, stride)};
  task.in_channels = in, task.out_channels = out, task.threads = threads, task.x = x, task.dy = dy;
  const Sides grid = grid_of(algorithm, task.out);
  task.box = box_for(kBoxTiles, grid, variant, in, 0);
  const std::int64_t all = up(grid.depth, task.box.depth) * up(grid.height, task.box.height) *
                           up(grid.width, task.box.width);
  const std::int64_t fit = std::max(kRoundBytes / (places * (in + out) * 4), kLeastTiles);
  task.boxes = std::clamp(fit / task.box.voxels(), std::int64_t{1}, all);
  task.tiles = task.boxes * task.box.voxels();
  task.value_step = whole_lines(task.tiles * in) + 16;  // not all in one set of the cache
  task.gradient_step = whole_lines(task.tiles * out) + 16;
  const std::int64_t rows = reach_along(task.box.depth, variant.depth, stride) *
                            reach_along(task.box.height, variant.plane, stride);
  task.row_floats = whole_lines(reach_along(task.box.width, variant.plane, stride) * lanes);
  task.thread_floats =
      task.row_floats + whole_lines(rows * task.box.width * places_along(variant.plane, stride) * lanes);
  const Floats values(static_cast<std::size_t>(places * task.value_step));
  const Floats gradients(static_cast<std::size_t>(places * task.gradient_step));
  const Floats own(static_cast<std::size_t>(threads * task.thread_floats));
  const Floats sums(static_cast<std::size_t>(places * in * out));
  std::fill_n(sums.data(), sums.size(), 0.0f);
  task.values = values.data(), task.gradients = gradients.data(), task.own = own.data(), task.sums = sums.data();
  conv3d_gradient_for(isa).winograd(algorithm, task);
  gather(sums.data(), dw, out, in, algorithm, lanes, threads);
}

}  // namespace orthokernels::cpu
