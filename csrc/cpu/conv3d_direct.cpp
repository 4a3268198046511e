// Direct convolution, compiled for each instruction set: one row of output voxels and one panel of output channels at a
// time, kRows voxels of it in registers. Any number of channels on either side.
//
// Of a few input channels, a tap has too few products to be worth its addresses: what all taps of a voxel read is
// copied side by side first, and multiplied as one row of a matrix. Of one or two outputs, most lanes of a panel would
// be idle: lanes are input channels then, and are added up at the end.
#include <cstdint>

#include "cpu/conv3d.h"
#include "cpu/products.h"
#include "cpu/taps.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {

void winograd(Algorithm algorithm, const ConvTask& task);

namespace {

// kR voxels from `voxel` on, kC vectors of channels of which the last may be partly beyond the output's channels.
template <int kR, int kC>
void make_voxels(const ConvTask& task, const Tap* taps, int tap_count, std::int64_t channel, std::int64_t row_start,
                 std::int64_t voxel) {
  Vector sum[kR][kC] = {};
  const ConvInput& input = task.input;
  add_taps<kR, kC>({task.in.width, task.stride, input.channels, input.skip_channels}, taps, tap_count, voxel, sum);
  const ConvOutput& output = task.output;
  for (int j = 0; j < kC; ++j) {
    const std::int64_t k = channel + j * kLanes;
    const int count = lanes_left(k, task.out_channels);
    const Vector bias = output.bias != nullptr ? load_some(output.bias + k, count) : Vector{};
    for (int i = 0; i < kR; ++i) {
      const std::int64_t at = (row_start + voxel + i) * task.out_channels + k;
      Vector value = sum[i][j] + bias;
      if (output.residual != nullptr) value += load_some(output.residual + at, count);
      store_some(output.y + at, value, count);
    }
  }
}

template <int kC>
void make_row(const ConvTask& task, const Tap* taps, int tap_count, std::int64_t channel, std::int64_t row_start) {
  std::int64_t voxel = 0;
  for (; voxel + kRows <= task.out.width; voxel += kRows)
    make_voxels<kRows, kC>(task, taps, tap_count, channel, row_start, voxel);
  for (; voxel < task.out.width; ++voxel) make_voxels<1, kC>(task, taps, tap_count, channel, row_start, voxel);
}

// The row's moments, of the panel's channels.
void gather(const ConvTask& task, std::int64_t row, std::int64_t first, std::int64_t last) {
  const std::int64_t out = task.out_channels, width = task.out.width;
  const float* y = task.output.y + row * width * out;
  float* moments = task.output.moments + row * 3 * out;
  const float n = static_cast<float>(width);
  for (std::int64_t k = first; k < last; k += kLanes) {
    const int count = lanes_left(k, last);
    const Vector pivot = load_some(y + k, count);
    Vector sum = {}, squares = {};
    for (std::int64_t w = 0; w < width; ++w) {
      const Vector apart = load_some(y + w * out + k, count) - pivot;
      sum += apart;
      squares += apart * apart;
    }
    const Vector rows[3] = {splat(n), pivot + sum / n, squares - sum * sum / n};
    for (int i = 0; i < 3; ++i) store_some(moments + i * out + k, rows[i], count);
  }
}

// The taps of a row of outputs that lie inside the volume, and how many; `weights` are the first tap's, those of the
// others follow `tap_step` floats apart.
int taps_of(const ConvTask& task, std::int64_t row, const float* weights, std::int64_t tap_step, Tap (&taps)[27]) {
  const int kernel = task.kernel, before = kernel / 2;
  const std::int64_t d = row / task.out.height, h = row % task.out.height;
  const ConvInput& input = task.input;
  int count = 0;
  for (int i = 0; i < kernel; ++i) {
    const std::int64_t from_d = d * task.stride + i - before;
    if (from_d < 0 || from_d >= task.in.depth) continue;
    for (int j = 0; j < kernel; ++j) {
      const std::int64_t from_h = h * task.stride + j - before;
      if (from_h < 0 || from_h >= task.in.height) continue;
      const std::int64_t start = (from_d * task.in.height + from_h) * task.in.width;
      for (int k = 0; k < kernel; ++k) {
        Tap& tap = taps[count++];
        tap.row[0] = input.x + start * input.channels;
        tap.row[1] = input.skip != nullptr ? input.skip + start * input.skip_channels : nullptr;
        tap.offset = k - before;
        tap.weights = weights + ((i * kernel + j) * kernel + k) * tap_step;
      }
    }
  }
  return count;
}

void make_unit(const ConvTask& task, std::int64_t panel, std::int64_t row) {
  constexpr std::int64_t kWide = kColumns * kLanes;
  const std::int64_t first = panel * kWide, left = (task.out_channels - first + kLanes - 1) / kLanes;
  const std::int64_t columns = left < kColumns ? left : kColumns;
  const std::int64_t panel_start = first * task.kernel * task.kernel * task.kernel * task.in_channels;
  Tap taps[27];
  const int count = taps_of(task, row, task.weights + panel_start, task.in_channels * columns * kLanes, taps);
  const std::int64_t row_start = row * task.out.width;
  if (columns == 1) make_row<1>(task, taps, count, first, row_start);
  if (columns == 2) make_row<2>(task, taps, count, first, row_start);
  if (kColumns > 2 && columns == 3) make_row<3>(task, taps, count, first, row_start);
  if (kColumns > 3 && columns == 4) make_row<4>(task, taps, count, first, row_start);
  if (task.output.moments != nullptr) {
    const std::int64_t last = first + columns * kLanes;
    gather(task, row, first, last < task.out_channels ? last : task.out_channels);
  }
}

// Adds the products of one tap of one volume, lane by lane of the input's channels, for kR voxels from `voxel` on.
// Inline, so that the sums stay in registers from tap to tap.
template <int kR>
[[gnu::always_inline]] inline void add_tap_by_lanes(const TapRows& rows, const float* row, std::int64_t offset,
                                                    std::int64_t channels, const float* weights, std::int64_t voxel,
                                                    Vector (&sum)[kR]) {
  const std::int64_t first = voxel * rows.stride + offset, last = first + (kR - 1) * rows.stride;
  if (first >= 0 && last < rows.width) {
    const float* from = row + first * channels;
    const std::int64_t step = rows.stride * channels;
    std::int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      const Vector weight = load(weights + c);
      ORTHOKERNELS_UNROLLED
      for (int i = 0; i < kR; ++i) sum[i] += load(from + i * step + c) * weight;
    }
    if (c == channels) return;
    const int rest = lanes_left(c, channels);
    const Vector weight = load_first(weights + c, rest);
    for (int i = 0; i < kR; ++i) sum[i] += load_first(from + i * step + c, rest) * weight;
  } else if constexpr (kR > 1) {  // partly outside: one by one
    for (int i = 0; i < kR; ++i) {
      Vector one[1] = {sum[i]};
      add_tap_by_lanes<1>(rows, row, offset, channels, weights, voxel + i, one);
      sum[i] = one[0];
    }
  }
}

// Output k of kR voxels from `voxel` on.
template <int kR>
void make_voxels_by_lanes(const ConvTask& task, const Tap* taps, int count, std::int64_t k, std::int64_t row_start,
                          std::int64_t voxel) {
  const ConvInput& input = task.input;
  const TapRows rows{task.in.width, task.stride, input.channels, input.skip_channels};
  Vector sum[kR] = {};
  for (int n = 0; n < count; ++n) {
    const Tap& tap = taps[n];
    add_tap_by_lanes<kR>(rows, tap.row[0], tap.offset, rows.channels, tap.weights, voxel, sum);
    if (rows.skip_channels > 0)
      add_tap_by_lanes<kR>(rows, tap.row[1], tap.offset, rows.skip_channels, tap.weights + rows.channels, voxel, sum);
  }
  const ConvOutput& output = task.output;
  for (int i = 0; i < kR; ++i) {
    const std::int64_t at = (row_start + voxel + i) * task.out_channels + k;
    float value = output.bias != nullptr ? output.bias[k] : 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) value += sum[i][lane];
    if (output.residual != nullptr) value += output.residual[at];
    output.y[at] = value;
  }
}

void make_row_by_lanes(const ConvTask& task, std::int64_t row) {
  const std::int64_t taps_all = static_cast<std::int64_t>(task.kernel) * task.kernel * task.kernel;
  const std::int64_t row_start = row * task.out.width;
  for (std::int64_t k = 0; k < task.out_channels; ++k) {
    Tap taps[27];
    const int count = taps_of(task, row, task.weights + k * taps_all * task.in_channels, task.in_channels, taps);
    std::int64_t voxel = 0;
    for (; voxel + kRows <= task.out.width; voxel += kRows)
      make_voxels_by_lanes<kRows>(task, taps, count, k, row_start, voxel);
    for (; voxel < task.out.width; ++voxel) make_voxels_by_lanes<1>(task, taps, count, k, row_start, voxel);
  }
  if (task.output.moments != nullptr) gather(task, row, 0, task.out_channels);
}

void direct_by_lanes(const ConvTask& task) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(task.threads)
  for (std::int64_t row = 0; row < task.out.depth * task.out.height; ++row) make_row_by_lanes(task, row);
}

constexpr int kFew = 4;                      // channels
constexpr std::int64_t kMostStreamed = 128;  // output channels
constexpr std::int64_t kLargeBytes = std::int64_t{64} << 20;  // of a volume that no cache keeps for the layer behind
constexpr std::int64_t kPatches = 24;  // voxels whose taps lie side by side; a multiple of kRows

bool of_few(const ConvTask& task) {
  return task.kernel == 3 && task.in_channels <= kFew && task.out_channels % kLanes == 0 &&
         task.input.skip == nullptr && task.output.residual == nullptr;
}

// What the 27 taps of `count` voxels of a row read, from `voxel` on: patches [count][taps][kChannels], zeros outside.
template <int kChannels>
void gather_patches(const ConvTask& task, std::int64_t row, std::int64_t voxel, std::int64_t count, float* patches) {
  constexpr std::int64_t kTaps = 27 * kChannels, kThree = 3 * kChannels;
  const std::int64_t d = row / task.out.height, h = row % task.out.height, width = task.in.width;
  for (std::int64_t n = 0; n < 9; ++n) {
    const std::int64_t from_d = d * task.stride + n / 3 - 1, from_h = h * task.stride + n % 3 - 1;
    const bool row_inside = from_d >= 0 && from_d < task.in.depth && from_h >= 0 && from_h < task.in.height;
    const float* from = task.input.x + (from_d * task.in.height + from_h) * width * kChannels;
    float* to = patches + n * kThree;
    for (std::int64_t v = 0; v < count; ++v, to += kTaps) {
      const std::int64_t first = (voxel + v) * task.stride - 1;
      if (row_inside && first >= 0 && first + 3 <= width) {
        for (std::int64_t i = 0; i < kThree; ++i) to[i] = from[first * kChannels + i];
        continue;
      }
      for (std::int64_t k = 0; k < 3; ++k)
        for (std::int64_t c = 0; c < kChannels; ++c) {
          const bool inside = row_inside && first + k >= 0 && first + k < width;
          to[k * kChannels + c] = inside ? from[(first + k) * kChannels + c] : 0.0f;
        }
    }
  }
}

// Adds the bias to `count` voxels of a row, from `voxel` on, and gathers what `end_moments` makes moments of: pivot, sum
// and squares of the row so far, [3][channels], or null.
void finish_voxels(const ConvTask& task, float* y, std::int64_t voxel, std::int64_t count, float* gathered) {
  const std::int64_t out = task.out_channels;
  const float* bias = task.output.bias;
  for (std::int64_t k = 0; k < out; k += kLanes) {
    const Vector added = bias != nullptr ? load(bias + k) : Vector{};
    const Vector pivot = gathered == nullptr ? Vector{} : voxel == 0 ? load(y + k) + added : load(gathered + k);
    const bool goes_on = gathered != nullptr && voxel > 0;
    Vector sum = goes_on ? load(gathered + out + k) : Vector{};
    Vector squares = goes_on ? load(gathered + 2 * out + k) : Vector{};
    for (std::int64_t v = 0; v < count; ++v) {
      const Vector value = load(y + v * out + k) + added, apart = value - pivot;
      store(y + v * out + k, value);
      sum += apart;
      squares += apart * apart;
    }
    if (gathered == nullptr) continue;
    store(gathered + k, pivot);
    store(gathered + out + k, sum);
    store(gathered + 2 * out + k, squares);
  }
}

void end_moments(float* gathered, std::int64_t out, std::int64_t width) {
  const float n = static_cast<float>(width);
  for (std::int64_t k = 0; k < out; k += kLanes) {
    const Vector pivot = load(gathered + k), sum = load(gathered + out + k), squares = load(gathered + 2 * out + k);
    store(gathered + k, splat(n));
    store(gathered + out + k, pivot + sum / n);
    store(gathered + 2 * out + k, squares - sum * sum / n);
  }
}

template <int kChannels>
void make_row_of_few(const ConvTask& task, std::int64_t row) {
  constexpr std::int64_t taps = 27 * kChannels;
  const std::int64_t out = task.out_channels;
  const ConvOutput& output = task.output;
  float* gathered = output.moments != nullptr ? output.moments + row * 3 * out : nullptr;
  const std::int64_t bytes = task.out.depth * task.out.height * task.out.width * out * 4;
  const bool aligned = reinterpret_cast<std::uintptr_t>(output.y) % sizeof(Vector) == 0;
  const bool streamed = bytes >= kLargeBytes && out <= kMostStreamed && aligned;
  alignas(64) float patches[kPatches * 27 * kChannels], block[kPatches * kMostStreamed];
  for (std::int64_t voxel = 0; voxel < task.out.width; voxel += kPatches) {
    const std::int64_t left = task.out.width - voxel, count = left < kPatches ? left : kPatches;
    gather_patches<kChannels>(task, row, voxel, count, patches);
    float* y = output.y + (row * task.out.width + voxel) * out;
    float* made = streamed ? block : y;
    multiply({patches, taps}, task.weights, {made, out}, count, taps, out);
    if (output.bias != nullptr || gathered != nullptr) finish_voxels(task, made, voxel, count, gathered);
    if (!streamed) continue;
    for (std::int64_t i = 0; i < count * out; i += kLanes) stream(y + i, load(block + i));
  }
  if (streamed) end_streams();
  if (gathered != nullptr) end_moments(gathered, out, task.out.width);
}

void direct_of_few(const ConvTask& task) {
  constexpr void (*kMakers[kFew])(const ConvTask&, std::int64_t) = {make_row_of_few<1>, make_row_of_few<2>,
                                                                    make_row_of_few<3>, make_row_of_few<4>};
  const auto make = kMakers[task.in_channels - 1];
#pragma omp parallel for schedule(dynamic, 4) num_threads(task.threads)
  for (std::int64_t row = 0; row < task.out.depth * task.out.height; ++row) make(task, row);
}

void direct(const ConvTask& task) {
  if (of_few(task)) return direct_of_few(task);
  if (sums_lanes(task.out_channels, task.in_channels)) return direct_by_lanes(task);
  const std::int64_t rows = task.out.depth * task.out.height;
  const std::int64_t panels = (task.out_channels + kColumns * kLanes - 1) / (kColumns * kLanes);
  // Whichever is smaller stays in the caches meanwhile: a panel's weights, while all voxels pass by, or a row.
  const bool rows_first = task.kernel == 1 && task.out.voxels() > task.out_channels;
#pragma omp parallel for schedule(dynamic, 4) num_threads(task.threads)
  for (std::int64_t unit = 0; unit < rows * panels; ++unit) {
    if (rows_first) make_unit(task, unit % panels, unit / panels);
    else make_unit(task, unit / rows, unit % rows);
  }
}

}  // namespace

const ConvKernels conv3d = {direct, winograd};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
