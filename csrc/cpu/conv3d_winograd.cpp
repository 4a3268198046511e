// Winograd's algorithm in one, two or three dimensions at once, compiled for each instruction set.
//
// A block of tiles goes through three steps in a workspace of its own: every tile's input is transformed along width,
// height and depth; for each of the transformed places, tiles x channels times channels x outputs; every tile's sums
// are transformed back, completed and written. The lines of `Line<M>` are the transforms along one axis.
//
// Ladder, 64 to 64 channels at 16 x 256 x 256 with SiLU and moments, one thread of a Zen 4 with AVX-512, GFLOP/s of the
// definition: as above 352; the next tile's input fetched ahead 440; its output and residual too 475. Direct: 115.
#include "cpu/conv3d.h"
#include "cpu/products.h"
#include "cpu/threads.h"
#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

// F(M, 3) along one axis: `input` makes M + 2 values of M + 2, `output` M of M + 2.
template <int M>
struct Line;

// One slice: nothing to transform, and only the kernel's middle is met.
template <>
struct Line<1> {
  static constexpr int kIn = 1, kBefore = 0;
  static inline void input(const Vector* x, Vector* v, int step) { v[0] = x[0], void(step); }
  static inline void output(const Vector* m, Vector* y, int step) { y[0] = m[0], void(step); }
};

// Points 0, 1, -1, infinity.
template <>
struct Line<2> {
  static constexpr int kIn = 4, kBefore = 1;
  static inline void input(const Vector* x, Vector* v, int step) {
    const Vector x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
    v[0] = x0 - x2;
    v[step] = x1 + x2;
    v[2 * step] = x2 - x1;
    v[3 * step] = x3 - x1;
  }
  static inline void output(const Vector* m, Vector* y, int step) {
    const Vector m1 = m[step], m2 = m[2 * step];
    y[0] = m[0] + m1 + m2;
    y[step] = m1 - m2 + m[3 * step];
  }
};

// Points 0, a, -a, b, -b, infinity with a = 2 / 3, b = 1 / a: a third of the error of 0, 1, -1, 2, -2.
template <>
struct Line<4> {
  static constexpr int kIn = 6, kBefore = 1;
  static constexpr float a = 2.0f / 3, b = 1.5f, a2 = 4.0f / 9, b2 = 2.25f;
  static inline void input(const Vector* x, Vector* v, int step) {
    const Vector x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step];
    const Vector even_a = x4 - b2 * x2, odd_a = x3 - b2 * x1;
    const Vector even_b = x4 - a2 * x2, odd_b = x3 - a2 * x1;
    const Vector x0 = x[0], x5 = x[5 * step];
    v[0] = x0 + x4 - (a2 + b2) * x2;
    v[step] = even_a + a * odd_a;
    v[2 * step] = even_a - a * odd_a;
    v[3 * step] = even_b + b * odd_b;
    v[4 * step] = even_b - b * odd_b;
    v[5 * step] = x1 + x5 - (a2 + b2) * x3;
  }
  static inline void output(const Vector* m, Vector* y, int step) {
    const Vector m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
    const Vector sum_a = m1 + m2, sum_b = m3 + m4, apart_a = m1 - m2, apart_b = m3 - m4;
    y[0] = m[0] + sum_a + sum_b;
    y[step] = a * apart_a + b * apart_b;
    y[2 * step] = a2 * sum_a + b2 * sum_b;
    y[3 * step] = (a * a2) * apart_a + (b * b2) * apart_b + m[5 * step];
  }
};

// F(D, P, P): what a tile reads and writes.
template <int D, int P>
struct Tile {
  static constexpr int kDepth = Line<D>::kIn, kPlane = Line<P>::kIn, kPlaces = kDepth * kPlane * kPlane;
};

// Where a tile begins in the output.
struct Place {
  std::int64_t d, h, w;
};

template <int D, int P>
Place place_of(const ConvTask& task, std::int64_t tile) {
  const std::int64_t across = (task.out.width + P - 1) / P, down = (task.out.height + P - 1) / P;
  return {tile / (across * down) * D, tile / across % down * P, tile % across * P};
}

// The input's transform of one tile and kLanes channels, from a tile's table of addresses (null outside the volume).
// `ahead` lies the same voxel of the next tile, whose fetch from memory begins here: no hardware sees these strides.
template <int D, int P, bool kActivate>
void transform_input(const float* const* sources, std::int64_t channel, Vector scale, Vector shift, float* v,
                     std::int64_t place_step, std::int64_t ahead) {
  constexpr int kDepth = Tile<D, P>::kDepth, kPlane = Tile<D, P>::kPlane;
  Vector t[kDepth][kPlane][kPlane];
  for (int i = 0; i < kDepth; ++i) {
    for (int j = 0; j < kPlane; ++j) {
      Vector row[kPlane];
      for (int k = 0; k < kPlane; ++k) {
        const float* source = *sources++;
        Vector value = {};
        if (source != nullptr) {
          value = load(source + channel);
          __builtin_prefetch(source + channel + ahead);
          if (kActivate) value = silu(value * scale + shift);
        }
        row[k] = value;
      }
      Line<P>::input(row, t[i][j], 1);
    }
    for (int k = 0; k < kPlane; ++k) Line<P>::input(&t[i][0][k], &t[i][0][k], kPlane);
  }
  for (int j = 0; j < kPlane; ++j) {
    for (int k = 0; k < kPlane; ++k) {
      Vector line[kDepth], out[kDepth];
      for (int i = 0; i < kDepth; ++i) line[i] = t[i][j][k];
      Line<D>::input(line, out, 1);
      for (int i = 0; i < kDepth; ++i) store(v + ((i * kPlane + j) * kPlane + k) * place_step, out[i]);
    }
  }
}

// Addresses of a tile's input voxels in one volume.
template <int D, int P>
void addresses(const ConvTask& task, Place place, const float* x, std::int64_t channels, const float** sources) {
  for (int i = 0; i < Tile<D, P>::kDepth; ++i) {
    const std::int64_t d = place.d - Line<D>::kBefore + i;
    for (int j = 0; j < Tile<D, P>::kPlane; ++j) {
      const std::int64_t h = place.h - Line<P>::kBefore + j;
      const bool row_inside = d >= 0 && d < task.in.depth && h >= 0 && h < task.in.height;
      for (int k = 0; k < Tile<D, P>::kPlane; ++k) {
        const std::int64_t w = place.w - Line<P>::kBefore + k;
        const bool inside = row_inside && w >= 0 && w < task.in.width;
        *sources++ = inside ? x + ((d * task.in.height + h) * task.in.width + w) * channels : nullptr;
      }
    }
  }
}

template <int D, int P>
void transform_volume(const ConvTask& task, Place place, const float* x, std::int64_t channels, std::int64_t first,
                      float* v, std::int64_t place_step) {
  const float* sources[Tile<D, P>::kPlaces];
  addresses<D, P>(task, place, x, channels, sources);
  const ConvInput& input = task.input;
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    if (input.scale != nullptr) {
      const Vector scale = load(input.scale + first + c), shift = load(input.shift + first + c);
      transform_input<D, P, true>(sources, c, scale, shift, v + first + c, place_step, P * channels);
    } else {
      transform_input<D, P, false>(sources, c, Vector{}, Vector{}, v + first + c, place_step, P * channels);
    }
  }
}

// Moments of a block's output for kLanes channels: values less a pivot, the first of them, so that a large mean costs
// no digits.
struct Gathered {
  Vector pivot, sum, squares;
};

template <int D, int P>
void transform_output(const ConvTask& task, Place place, std::int64_t channel, const float* m, std::int64_t place_step,
                      Gathered* gathered, bool first_of_block) {
  constexpr int kDepth = Tile<D, P>::kDepth, kPlane = Tile<D, P>::kPlane;
  Vector t[kDepth][P][P];
  for (int i = 0; i < kDepth; ++i) {
    Vector rows[kPlane][P];
    for (int j = 0; j < kPlane; ++j) {
      Vector row[kPlane];
      for (int k = 0; k < kPlane; ++k) row[k] = load(m + ((i * kPlane + j) * kPlane + k) * place_step);
      Line<P>::output(row, rows[j], 1);
    }
    for (int k = 0; k < P; ++k) {
      Vector column[kPlane], made[P];
      for (int j = 0; j < kPlane; ++j) column[j] = rows[j][k];
      Line<P>::output(column, made, 1);
      for (int j = 0; j < P; ++j) t[i][j][k] = made[j];
    }
  }
  const ConvOutput& output = task.output;
  const Vector bias = output.bias != nullptr ? load(output.bias + channel) : Vector{};
  const std::int64_t deep = task.out.depth - place.d, down = task.out.height - place.h;
  const std::int64_t across = task.out.width - place.w;
  const std::int64_t ahead = P * task.out_channels;  // the same voxel of the next tile
  for (int j = 0; j < P && j < down; ++j) {
    for (int k = 0; k < P && k < across; ++k) {
      Vector line[kDepth], made[D];
      for (int i = 0; i < kDepth; ++i) line[i] = t[i][j][k];
      Line<D>::output(line, made, 1);
      for (int i = 0; i < D && i < deep; ++i) {
        const std::int64_t voxel = ((place.d + i) * task.out.height + place.h + j) * task.out.width + place.w + k;
        const std::int64_t at = voxel * task.out_channels + channel;
        Vector value = made[i] + bias;
        if (output.residual != nullptr) {
          value += load(output.residual + at);
          __builtin_prefetch(output.residual + at + ahead);
        }
        store(output.y + at, value);
        __builtin_prefetch(output.y + at + ahead, 1);
        if (gathered == nullptr) continue;
        if (first_of_block) *gathered = {value, Vector{}, Vector{}}, first_of_block = false;
        const Vector apart = value - gathered->pivot;
        gathered->sum += apart;
        gathered->squares += apart * apart;
      }
    }
  }
}

template <int D, int P>
std::int64_t voxels_of(const ConvTask& task, Place place) {
  const std::int64_t deep = task.out.depth - place.d, down = task.out.height - place.h;
  const std::int64_t across = task.out.width - place.w;
  return (deep < D ? deep : D) * (down < P ? down : P) * (across < P ? across : P);
}

template <int D, int P>
void block(const ConvTask& task, std::int64_t number, std::int64_t first, std::int64_t count, float* workspace) {
  constexpr int kPlaces = Tile<D, P>::kPlaces;
  const std::int64_t in = task.in_channels, out = task.out_channels;
  const std::int64_t v_step = task.tiles * in + 16, m_step = task.tiles * out + 16;  // not all in one set of the cache
  float* v = workspace;
  float* m = workspace + kPlaces * v_step;
  const ConvInput& input = task.input;
  for (std::int64_t t = 0; t < count; ++t) {
    const Place place = place_of<D, P>(task, first + t);
    transform_volume<D, P>(task, place, input.x, input.channels, 0, v + t * in, v_step);
    if (input.skip != nullptr)
      transform_volume<D, P>(task, place, input.skip, input.skip_channels, input.channels, v + t * in, v_step);
  }
  for (int place = 0; place < kPlaces; ++place)
    multiply({v + place * v_step, in}, task.weights + place * in * out, {m + place * m_step, out}, count, in, out);
  // The input's transform is done with: its place holds the moments.
  Gathered* gathered = task.output.moments != nullptr ? reinterpret_cast<Gathered*>(v) : nullptr;
  std::int64_t voxels = 0;
  for (std::int64_t t = 0; t < count; ++t) {
    const Place place = place_of<D, P>(task, first + t);
    voxels += voxels_of<D, P>(task, place);
    for (std::int64_t k = 0; k < out; k += kLanes)
      transform_output<D, P>(task, place, k, m + t * out + k, m_step,
                             gathered != nullptr ? gathered + k / kLanes : nullptr, t == 0);
  }
  if (gathered == nullptr) return;
  float* moments = task.output.moments + number * 3 * out;
  const float n = static_cast<float>(voxels);
  for (std::int64_t k = 0; k < out; k += kLanes) {
    const Gathered& own = gathered[k / kLanes];
    store(moments + k, splat(n));
    store(moments + out + k, own.pivot + own.sum / n);
    store(moments + 2 * out + k, own.squares - own.sum * own.sum / n);
  }
}

template <int D, int P>
void run(const ConvTask& task) {
  const std::int64_t tiles = ((task.out.depth + D - 1) / D) * ((task.out.height + P - 1) / P) *
                             ((task.out.width + P - 1) / P);
  const std::int64_t blocks = (tiles + task.tiles - 1) / task.tiles;
  const std::int64_t own = Tile<D, P>::kPlaces * (task.tiles * (task.in_channels + task.out_channels) + 32);
#pragma omp parallel for schedule(dynamic, 1) num_threads(task.threads)
  for (std::int64_t n = 0; n < blocks; ++n) {
    const std::int64_t first = n * task.tiles;
    const std::int64_t count = tiles - first < task.tiles ? tiles - first : task.tiles;
    block<D, P>(task, n, first, count, task.workspace + thread_number() * own);
  }
}

}  // namespace

void winograd(Algorithm algorithm, const ConvTask& task) {
  switch (algorithm) {
    case Algorithm::winograd222: return run<2, 2>(task);
    case Algorithm::winograd144: return run<1, 4>(task);
    case Algorithm::winograd244: return run<2, 4>(task);
    case Algorithm::winograd444: return run<4, 4>(task);
    case Algorithm::direct: return;
  }
}

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
