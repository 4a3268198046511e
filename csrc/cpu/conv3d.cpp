// What all instruction sets share: which algorithm fits, how weights are packed, and moments folded.
#include "cpu/conv3d.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "cpu/winograd_variants.h"

namespace orthokernels::cpu {
namespace {

std::int64_t columns_of(Isa isa) { return isa == Isa::avx512 ? 4 : 2; }  // vector.h, kColumns

// Tiles of a box: enough products for each piece of weights that is fetched, few enough for the caches.
std::int64_t tiles_of(std::int64_t in, std::int64_t out, std::int64_t places) {
  constexpr std::int64_t kBytes = std::int64_t{3} << 18, kRows = 6;  // of which products are made at once (vector.h)
  const std::int64_t fit = kBytes / (places * std::max(in, out) * 4);
  return std::clamp(fit / kRows * kRows, kRows, std::int64_t{96});
}

WinogradRoom room_for(Sides box, Algorithm algorithm, std::int64_t in, std::int64_t out, Isa isa) {
  const Variant variant = variant_of(algorithm);
  const std::int64_t tiles = box.voxels(), lanes = lanes_of(isa);
  const std::int64_t wide = reach_along(box.width, variant.plane, variant.stride);
  const std::int64_t rows = reach_along(box.depth, variant.depth, variant.stride) *
                            reach_along(box.height, variant.plane, variant.stride);
  WinogradRoom room{};
  room.place_step = whole_lines(tiles * std::max(in, out)) + 16;  // not all in one set of the cache
  room.row = (places_of(algorithm) + 1) * room.place_step;
  room.lines = room.row + whole_lines(wide * lanes);
  room.gathered =
      room.lines + whole_lines(rows * box.width * places_along(variant.plane, variant.stride) * lanes);
  room.floats = room.gathered + whole_lines(3 * out);
  return room;
}

// Places where a weight of output k and input c goes: panels of columns, inside them c, inside it k.
struct Panels {
  std::int64_t out, in, lanes, columns;
  std::int64_t place(std::int64_t k, std::int64_t c, std::int64_t taps, std::int64_t tap) const {
    const std::int64_t wide = lanes * columns, panel = k / wide;
    const std::int64_t own = std::min(columns, up(out - panel * wide, lanes)) * lanes;
    return panel * wide * in * taps + (tap * in + c) * own + k % wide;
  }
};

// Three taps along one axis to the axis' points, each a run of `count` values.
void transform_taps(const TapRows& axis, const double* taps, std::int64_t tap_step, std::int64_t count, double* made,
                    std::int64_t made_step) {
  for (std::size_t at = 0; at < axis.size(); ++at) {
    const double g0 = axis[at][0], g1 = axis[at][1], g2 = axis[at][2];
    double* to = made + static_cast<std::int64_t>(at) * made_step;
    for (std::int64_t n = 0; n < count; ++n)
      to[n] = g0 * taps[n] + g1 * taps[tap_step + n] + g2 * taps[2 * tap_step + n];
  }
}

// Of input channels `first` to `last`, [places][panels]. A vector of outputs at a time: their weights lie side by side
// in every place, and are transformed side by side.
void pack_winograd(const float* weight, std::int64_t out, std::int64_t in, std::int64_t first, std::int64_t last,
                   Algorithm algorithm, Isa isa, float* packed) {
  const Variant variant = variant_of(algorithm);
  const TapRows deep = tap_rows(variant.depth, variant.stride), plane = tap_rows(variant.plane, variant.stride);
  const std::int64_t lanes = lanes_of(isa), side = static_cast<std::int64_t>(plane.size());
  const Panels panels{out, last - first, lanes, columns_of(isa)};
  const std::int64_t places = places_of(algorithm), row = side * lanes, slice = side * row;
#pragma omp parallel for schedule(static)
  for (std::int64_t k = 0; k < out; k += lanes) {
    std::vector<double> taps(27 * lanes), along_w(9 * row), along_h(3 * slice), along_d(places * lanes);
    for (std::int64_t c = first; c < last; ++c) {
      for (std::int64_t lane = 0; lane < lanes; ++lane)
        for (std::int64_t tap = 0; tap < 27; ++tap)
          taps[tap * lanes + lane] = weight[((k + lane) * in + c) * 27 + tap];
      for (std::int64_t line = 0; line < 9; ++line)
        transform_taps(plane, &taps[line * 3 * lanes], lanes, lanes, &along_w[line * row], lanes);
      for (std::int64_t d = 0; d < 3; ++d)
        transform_taps(plane, &along_w[d * 3 * row], row, row, &along_h[d * slice], row);
      transform_taps(deep, along_h.data(), slice, slice, along_d.data(), slice);
      float* to = packed + panels.place(k, c - first, 1, 0);
      for (std::int64_t place = 0; place < places; ++place)
        for (std::int64_t lane = 0; lane < lanes; ++lane)
          to[place * panels.in * out + lane] = static_cast<float>(along_d[place * lanes + lane]);
    }
  }
}

// Input channels that go through the workspace at a time. With tiles of 4 x 4 a place's weights and values of more than
// 64 leave room for so few tiles that fetching weights takes longer than another piece's output.
std::int64_t piece_channels(Algorithm algorithm, std::int64_t in, Isa isa) {
  constexpr std::int64_t kMost = 64;
  if (variant_of(algorithm).plane != 4 || in <= kMost) return in;
  const std::int64_t lanes = lanes_of(isa);
  return up(up(in, up(in, kMost)), lanes) * lanes;
}

// Channels `first` to `last` of what is read, and how far apart its voxels lie.
struct Piece {
  ConvInput input;
  std::int64_t x_step, skip_step;
};

Piece piece_of(const ConvInput& input, std::int64_t first, std::int64_t last) {
  Piece piece{input, input.channels, input.skip_channels};
  ConvInput& own = piece.input;
  own.scale = input.scale != nullptr ? input.scale + first : nullptr;
  own.shift = input.shift != nullptr ? input.shift + first : nullptr;
  if (first >= input.channels) {
    own.x = input.skip + (first - input.channels), piece.x_step = input.skip_channels;
    own.channels = last - first;
  } else {
    own.x = input.x + first;
    own.channels = std::min(last, input.channels) - first;
  }
  own.skip_channels = last - first - own.channels;
  if (own.skip_channels == 0) own.skip = nullptr;
  return piece;
}

// Of weights [out, in, taps], or [in, out, taps] where the inputs come first.
Floats packed_in(const Panels& panels, const float* weight, std::int64_t taps, bool inputs_first) {
  const std::int64_t out_step = inputs_first ? taps : panels.in * taps;
  const std::int64_t in_step = inputs_first ? panels.out * taps : taps;
  Floats packed(static_cast<std::size_t>(up(panels.out, panels.lanes) * panels.lanes * panels.in * taps));
  std::fill_n(packed.data(), packed.size(), 0.0f);
#pragma omp parallel for schedule(static)
  for (std::int64_t k = 0; k < panels.out; ++k)
    for (std::int64_t c = 0; c < panels.in; ++c)
      for (std::int64_t tap = 0; tap < taps; ++tap)
        packed.data()[panels.place(k, c, taps, tap)] = weight[k * out_step + c * in_step + tap];
  return packed;
}

bool lanes_divide(Isa isa, std::int64_t out, std::int64_t in, std::int64_t skip) {
  return out % lanes_of(isa) == 0 && in % lanes_of(isa) == 0 && skip % lanes_of(isa) == 0;
}

}  // namespace

Floats packed_taps(const float* weight, std::int64_t out, std::int64_t in, std::int64_t taps, Isa isa) {
  return packed_in({out, in, lanes_of(isa), columns_of(isa)}, weight, taps, true);
}

Isa winograd_isa(Isa isa, std::int64_t out, std::int64_t in, std::int64_t skip) {
  return isa == Isa::avx512 && !lanes_divide(isa, out, in, skip) ? Isa::avx2 : isa;
}

const char* name_of(Algorithm algorithm) { return variant_of(algorithm).name; }

const char* Conv3d::unfit(Algorithm algorithm, std::int64_t out, std::int64_t in, int kernel, int stride, Sides sides,
                          Isa isa, std::int64_t skip) {
  if (algorithm == Algorithm::direct) return nullptr;
  const bool strided = variant_of(algorithm).stride == 2;
  if (kernel != 3 || stride != (strided ? 2 : 1))
    return strided ? "it takes 3 x 3 x 3 kernels of stride 2" : "it takes 3 x 3 x 3 kernels of stride 1";
  if (!lanes_divide(winograd_isa(isa, out, in, skip), out, in, skip))
    return "the vectors' lanes do not divide the channels";
  if (algorithm == Algorithm::winograd144 && sides.depth != 1) return "it takes volumes of one slice";
  return nullptr;
}

Conv3d::Conv3d(const float* weight, std::int64_t out, std::int64_t in, int kernel, int stride, Sides sides,
               Algorithm algorithm, Isa isa, int tiles, std::int64_t skip)
    : in_(sides), out_channels_(out), in_channels_(in), piece_(in), kernel_(kernel), stride_(stride),
      algorithm_(algorithm), isa_(algorithm == Algorithm::direct ? isa : winograd_isa(isa, out, in, skip)) {
  if (const char* reason = unfit(algorithm, out, in, kernel, stride, sides, isa, skip))
    throw std::invalid_argument(std::string("algorithm: ") + name_of(algorithm) + ": " + reason + ".");
  out_ = {up(sides.depth, stride), up(sides.height, stride), up(sides.width, stride)};
  if (algorithm == Algorithm::direct) {
    const std::int64_t taps = static_cast<std::int64_t>(kernel) * kernel * kernel;
    const bool plain = sums_lanes(out, in);
    const Panels panels{out, in, plain ? 1 : lanes_of(isa_), plain ? 1 : columns_of(isa_)};
    if (weight != nullptr) weights_ = packed_in(panels, weight, taps, false);
    return;
  }
  const std::int64_t places = places_of(algorithm);
  piece_ = piece_channels(algorithm, in, isa_);
  box_ = box_for(tiles > 0 ? tiles : tiles_of(piece_, out, places), grid(), variant_of(algorithm), piece_,
                 places * piece_ * out);
  room_ = room_for(box_, algorithm, piece_, out, isa_);
  if (weight == nullptr) return;
  weights_ = Floats(static_cast<std::size_t>(places * in * out));
  for (std::int64_t first = 0; first < in; first += piece_)
    pack_winograd(weight, out, in, first, std::min(first + piece_, in), algorithm, isa_,
                  weights_.data() + places * first * out);
}

const char* Conv3d::unfit_input(const ConvInput& input) const {
  if (algorithm_ == Algorithm::direct)
    return input.scale != nullptr ? "the direct algorithm reads its input as it is, without scale and shift" : nullptr;
  return input.channels % lanes_of(isa_) != 0 || input.skip_channels % lanes_of(isa_) != 0
             ? "the vectors' lanes do not divide its channels"
             : nullptr;
}

std::int64_t Conv3d::workspace_floats(int threads) const { return threads * room_.floats; }

std::int64_t Conv3d::moment_blocks() const {
  if (algorithm_ == Algorithm::direct) return out_.depth * out_.height;
  const Sides own = grid();
  return up(own.depth, box_.depth) * up(own.height, box_.height) * up(own.width, box_.width);
}

Sides Conv3d::grid() const { return grid_of(algorithm_, out_); }

double Conv3d::operations() const {
  const double pairs = static_cast<double>(in_channels_) * static_cast<double>(out_channels_);
  return 2.0 * kernel_ * kernel_ * kernel_ * pairs * static_cast<double>(out_.voxels());
}

double Conv3d::operations_done() const {
  if (algorithm_ == Algorithm::direct) return operations();
  const double pairs = static_cast<double>(in_channels_) * static_cast<double>(out_channels_);
  return 2.0 * pairs * static_cast<double>(places_of(algorithm_) * grid().voxels());
}

void Conv3d::run(const ConvInput& input, const ConvOutput& output, float* workspace, int threads) const {
  const ConvKernels& kernels = conv3d_for(isa_);
  const std::int64_t places = algorithm_ == Algorithm::direct ? 0 : places_of(algorithm_);
  for (std::int64_t first = 0; first < in_channels_; first += piece_) {
    const std::int64_t last = std::min(first + piece_, in_channels_);
    const Piece piece = piece_of(input, first, last);
    ConvOutput own = output;
    if (first > 0) own.residual = output.y;
    if (last < in_channels_) own.bias = nullptr, own.moments = nullptr;
    const ConvTask task{in_,   out_,    last - first,    out_channels_,     kernel_,      stride_, box_,
                        room_, threads, weights_.data() + places * first * out_channels_, workspace,
                        piece.input, piece.x_step, piece.skip_step, own};
    if (algorithm_ == Algorithm::direct) kernels.direct(task);
    else kernels.winograd(algorithm_, task);
  }
}

void fold_group_norm(const std::vector<ChannelMoments>& parts, std::int64_t groups, const float* weight,
                     const float* bias, float eps, float* scale, float* shift) {
  std::int64_t channels = 0;
  for (const ChannelMoments& part : parts) channels += part.channels;
  std::vector<double> count(groups, 0), mean(groups, 0), squares(groups, 0);
  const std::int64_t width = channels / groups;
  std::int64_t channel = 0;
  for (const ChannelMoments& part : parts) {
    for (std::int64_t c = 0; c < part.channels; ++c, ++channel) {
      const std::int64_t group = channel / width;
      for (std::int64_t block = 0; block < part.blocks; ++block) {
        // Chan, Golub & LeVeque: two sets' moments together.
        const float* own = part.moments + block * 3 * part.channels + c;
        const double n = own[0], whole = count[group] + n, apart = own[part.channels] - mean[group];
        mean[group] += apart * n / whole;
        squares[group] += own[2 * part.channels] + apart * apart * count[group] * n / whole;
        count[group] = whole;
      }
    }
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    const std::int64_t group = c / width;
    const double rstd = 1 / std::sqrt(std::max(squares[group] / count[group], 0.0) + eps);
    const double slope = rstd * (weight != nullptr ? weight[c] : 1.0f);
    scale[c] = static_cast<float>(slope);
    shift[c] = static_cast<float>((bias != nullptr ? bias[c] : 0.0f) - mean[group] * slope);
  }
}

}  // namespace orthokernels::cpu
