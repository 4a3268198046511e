// Compiled for each instruction set. Forward walks through the volume twice, for the moments and for the result, and so
// does backward, for the sums and for dx.
#include "cpu/group_norm_silu.h"

#include "cpu/vector.h"

namespace orthokernels::cpu::ORTHOKERNELS_ISA {
namespace {

constexpr std::int64_t kRun = 256;  // values that are added to one number before it is added to another

// A block of one of the two volumes: rows of neighbours in memory, `columns` of them of one channel each, or of one
// channel altogether.
struct Block {
  std::int64_t sample, channel;  // the first of its channels, in the concatenation
  std::int64_t rows, columns;
  std::int64_t in, in_step;    // where it begins in its own volume, and floats from row to row
  std::int64_t out, out_step;  // the same in the concatenation
  std::int64_t number;         // among the sample's blocks of these channels
  bool skip;
};

// The blocks that one unit of work has: channels last, one of each volume.
int blocks_of(const GroupNormShape& shape, std::int64_t unit, Block (&found)[2]) {
  const std::int64_t blocks = group_norm_blocks(shape), size = group_norm_block(shape), all = shape.all_channels();
  const std::int64_t number = unit % blocks, first = number * size;
  const std::int64_t left = shape.voxels - first, count = left < size ? left : size;
  if (shape.channels_last) {
    const std::int64_t sample = unit / blocks, voxel = sample * shape.voxels + first;
    const std::int64_t own = shape.channels, behind = shape.skip_channels;
    found[0] = {sample, 0, count, own, voxel * own, own, voxel * all, all, number, false};
    found[1] = {sample, own, count, behind, voxel * behind, behind, voxel * all + own, all, number, true};
    return behind > 0 ? 2 : 1;
  }
  const std::int64_t row = unit / blocks, sample = row / all, channel = row % all;
  const bool skip = channel >= shape.channels;
  const std::int64_t own = skip ? sample * shape.skip_channels + channel - shape.channels
                                : sample * shape.channels + channel;
  found[0] = {sample, channel, 1, count, own * shape.voxels + first, 0, row * shape.voxels + first, 0, number, skip};
  return 1;
}

std::int64_t units_of(const GroupNormShape& shape) {
  return shape.samples * group_norm_blocks(shape) * (shape.channels_last ? 1 : shape.all_channels());
}

// Where the sums of a sample's channel and block are.
template <typename Task>
double* sums_at(const Task& task, std::int64_t sample, std::int64_t channel, std::int64_t block) {
  const std::int64_t row = sample * task.shape.all_channels() + channel;
  return task.workspace.sums + (row * group_norm_blocks(task.shape) + block) * 3;
}

// What each channel of a sample becomes, one kind of number after the other.
template <typename Task>
float* table_at(const Task& task, std::int64_t sample, int kind) {
  return task.workspace.table + (sample * 8 + kind) * task.shape.all_channels();
}

// kSums sums over the rows of a block, of each of kV vectors of columns; `add(sums, row, column, count)` adds a place.
// Where a row has few vectors, the sums of several rows wait beside each other, or each addition would wait for the last.
template <int kSums, int kV, typename Add>
inline void add_rows(std::int64_t rows, std::int64_t column, int count, Vector (&total)[kV][kSums], const Add& add) {
  constexpr int kAtOnce = kSums * kV > 4 ? 1 : 8 / (kSums * kV);  // eight sums fit the registers
  for (std::int64_t first = 0; first < rows; first += kRun) {
    const std::int64_t end = rows - first < kRun ? rows : first + kRun;
    Vector sums[kAtOnce][kV][kSums] = {};
    std::int64_t row = first;
    for (; row + kAtOnce <= end; row += kAtOnce)
      for (int n = 0; n < kAtOnce; ++n)
        for (int j = 0; j < kV; ++j) add(sums[n][j], row + n, column + j * kLanes, count);
    for (; row < end; ++row)
      for (int j = 0; j < kV; ++j) add(sums[0][j], row, column + j * kLanes, count);
    for (int n = 0; n < kAtOnce; ++n)
      for (int j = 0; j < kV; ++j)
        for (int i = 0; i < kSums; ++i) total[j][i] += sums[n][j][i];
  }
}

// The same along the columns of the only row, which are of one channel; the last, partial vector counts once.
template <int kSums, typename Add>
inline void add_columns(std::int64_t columns, float (&total)[kSums], const Add& add) {
  constexpr int kV = 4;
  Vector outer[kV][kSums] = {};
  std::int64_t column = 0;
  while (column + kV * kLanes <= columns) {
    Vector sums[kV][kSums] = {};
    for (std::int64_t n = 0; n < kRun && column + kV * kLanes <= columns; ++n, column += kV * kLanes)
      for (int j = 0; j < kV; ++j) add(sums[j], 0, column + j * kLanes, kLanes);
    for (int j = 0; j < kV; ++j)
      for (int i = 0; i < kSums; ++i) outer[j][i] += sums[j][i];
  }
  for (; column < columns; column += kLanes) add(outer[0], 0, column, lanes_left(column, columns));
  for (int i = 0; i < kSums; ++i) {
    const Vector sum = (outer[0][i] + outer[1][i]) + (outer[2][i] + outer[3][i]);
    total[i] = 0;
    for (int lane = 0; lane < kLanes; ++lane) total[i] += sum[lane];
  }
}

// How many vectors of columns are taken at once.
template <int kV>
struct Width {
  static constexpr int vectors = kV;
};

// Calls visit(width, column, lanes) for all columns, four vectors at a time while there are so many, then two.
template <typename Visit>
inline void for_columns(std::int64_t columns, const Visit& visit) {
  std::int64_t column = 0;
  for (; column + 4 * kLanes <= columns; column += 4 * kLanes) visit(Width<4>{}, column, kLanes);
  for (; column + 2 * kLanes <= columns; column += 2 * kLanes) visit(Width<2>{}, column, kLanes);
  for (; column < columns; column += kLanes) visit(Width<1>{}, column, lanes_left(column, columns));
}

// Mean and squared distances to it of n values, from the sum of the values' distances to a number near the mean and
// from their squares.
void write_moments(double* sums, float near, float apart, float squares, std::int64_t n) {
  sums[0] = near + static_cast<double>(apart) / static_cast<double>(n);
  sums[1] = squares - static_cast<double>(apart) * apart / static_cast<double>(n);
}

template <int kV>
void moments_of_channels(const GroupNormTask& task, const Block& block, const float* p, std::int64_t column, int count) {
  const float n = static_cast<float>(block.rows);
  Vector sum[kV][1] = {}, both[kV][2] = {}, near[kV];
  add_rows<1, kV>(block.rows, column, count, sum, [&](Vector* sums, std::int64_t row, std::int64_t at, int lanes) {
    sums[0] += load_some(p + row * block.in_step + at, lanes);
  });
  for (int j = 0; j < kV; ++j) near[j] = sum[j][0] / n;
  add_rows<2, kV>(block.rows, column, count, both, [&](Vector* sums, std::int64_t row, std::int64_t at, int lanes) {
    const Vector apart = load_some(p + row * block.in_step + at, lanes) - near[(at - column) / kLanes];
    sums[0] += apart;
    sums[1] += apart * apart;
  });
  for (int j = 0; j < kV; ++j)
    for (int lane = 0; lane < count; ++lane) {
      double* sums = sums_at(task, block.sample, block.channel + column + j * kLanes + lane,
                             block.number);
      write_moments(sums, near[j][lane], both[j][0][lane], both[j][1][lane], block.rows);
    }
}

void moments_of_row(const GroupNormTask& task, const Block& block, const float* p) {
  float sum[1], both[2];
  add_columns<1>(block.columns, sum, [&](Vector* sums, std::int64_t, std::int64_t at, int count) {
    sums[0] += load_some(p + at, count);
  });
  const float near = sum[0] / static_cast<float>(block.columns);
  add_columns<2>(block.columns, both, [&](Vector* sums, std::int64_t, std::int64_t at, int count) {
    Vector apart = load_some(p + at, count) - near;
    if (count < kLanes) {
      float lanes[kLanes] = {};
      store_first(lanes, apart, count);
      apart = load(lanes);
    }
    sums[0] += apart;
    sums[1] += apart * apart;
  });
  write_moments(sums_at(task, block.sample, block.channel, block.number), near, both[0], both[1],
                block.columns);
}

void gather_moments(const GroupNormTask& task, const Block& block) {
  const float* p = (block.skip ? task.input.skip : task.input.x) + block.in;
  if (!task.shape.channels_last) return moments_of_row(task, block, p);
  for_columns(block.columns, [&](auto width, std::int64_t column, int count) {
    moments_of_channels<decltype(width)::vectors>(task, block, p, column, count);
  });
}

// What stands between xhat and z for a channel: z = xhat slope + offset.
struct Affine {
  double weight, bias, scale, slope, offset;
};

Affine affine_of(const GroupNormShape& shape, const GroupNormInput& input, std::int64_t sample, std::int64_t channel) {
  const std::int64_t all = shape.all_channels();
  const float* film = input.scale_shift != nullptr ? input.scale_shift + sample * 2 * all + channel : nullptr;
  Affine found{1, 0, 1, 1, 0};
  if (input.weight != nullptr) found.weight = input.weight[channel];
  if (input.bias != nullptr) found.bias = input.bias[channel];
  if (film != nullptr) found.scale = 1 + static_cast<double>(film[0]);
  found.slope = found.weight * found.scale;
  found.offset = found.bias * found.scale + (film != nullptr ? film[all] : 0.0f);
  return found;
}

double shift_of(const GroupNormShape& shape, const GroupNormInput& input, std::int64_t sample, std::int64_t channel) {
  return input.shift != nullptr ? input.shift[sample * shape.all_channels() + channel] : 0.0f;
}

struct Moments {
  double mean, variance;
};

// Of a sample's group, from those of its channels' blocks (Chan, Golub & LeVeque 1979).
Moments moments_of_group(const GroupNormTask& task, std::int64_t sample, std::int64_t group) {
  const GroupNormShape& shape = task.shape;
  const std::int64_t width = shape.all_channels() / shape.groups, blocks = group_norm_blocks(shape);
  const std::int64_t size = group_norm_block(shape);
  double count = 0, mean = 0, squares = 0;
  for (std::int64_t channel = group * width; channel < (group + 1) * width; ++channel) {
    const double shift = shift_of(shape, task.input, sample, channel);
    const double* sums = sums_at(task, sample, channel, 0);
    for (std::int64_t block = 0; block < blocks; ++block, sums += 3) {
      const double n = static_cast<double>(block + 1 < blocks ? size : shape.voxels - block * size);
      const double share = n / (count + n), apart = sums[0] + shift - mean;
      mean += apart * share;
      squares += sums[1] + apart * apart * count * share;
      count += n;
    }
  }
  return {mean, squares > 0 ? squares / count : 0};
}

// A group's mean and rstd, and what its channels become: y = (x - centre) scale + rest, since x - centre is exact
// where scale would enlarge x's own last digits.
enum ForwardKind { kCentre, kScale, kRest };

void fold_group(const GroupNormTask& task, std::int64_t sample, std::int64_t group) {
  const GroupNormShape& shape = task.shape;
  const Moments moments = moments_of_group(task, sample, group);
  const double rstd = 1 / __builtin_sqrt(moments.variance + task.eps);
  task.mean[sample * shape.groups + group] = static_cast<float>(moments.mean);
  task.rstd[sample * shape.groups + group] = static_cast<float>(rstd);
  const std::int64_t width = shape.all_channels() / shape.groups;
  for (std::int64_t channel = group * width; channel < (group + 1) * width; ++channel) {
    const Affine affine = affine_of(shape, task.input, sample, channel);
    const double middle = moments.mean - shift_of(shape, task.input, sample, channel), scale = rstd * affine.slope;
    const float centre = static_cast<float>(middle);
    table_at(task, sample, kCentre)[channel] = centre;
    table_at(task, sample, kScale)[channel] = static_cast<float>(scale);
    table_at(task, sample, kRest)[channel] =
        static_cast<float>((static_cast<double>(centre) - middle) * scale + affine.offset);
  }
}

// What a place of the block has from the table: of its own channel, or of the only one.
template <bool kLast>
inline Vector of_channel(const float* table, std::int64_t column, int count) {
  return kLast ? load_some(table + column, count) : splat(table[0]);
}

template <bool kLast, bool kSilu>
void apply(const GroupNormTask& task, const Block& block) {
  const float* p = (block.skip ? task.input.skip : task.input.x) + block.in;
  float* y = task.y + block.out;
  const float* table[3];
  for (int kind = 0; kind < 3; ++kind)
    table[kind] = table_at(task, block.sample, kind) + block.channel;
  for (std::int64_t row = 0; row < block.rows; ++row, p += block.in_step, y += block.out_step)
    for (std::int64_t at = 0; at < block.columns; at += kLanes) {
      const int count = lanes_left(at, block.columns);
      const Vector z = (load_some(p + at, count) - of_channel<kLast>(table[kCentre], at, count)) *
                           of_channel<kLast>(table[kScale], at, count) +
                       of_channel<kLast>(table[kRest], at, count);
      store_some(y + at, kSilu ? silu(z) : z, count);
    }
}

void forward(const GroupNormTask& task) {
  const GroupNormShape& shape = task.shape;
  const std::int64_t units = units_of(shape), groups = shape.samples * shape.groups;
  const auto write = shape.channels_last ? (task.input.silu ? apply<true, true> : apply<true, false>)
                                         : (task.input.silu ? apply<false, true> : apply<false, false>);
#pragma omp parallel num_threads(task.threads)
  {
    Block blocks[2];
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit)
      for (int n = 0, count = blocks_of(shape, unit, blocks); n < count; ++n) gather_moments(task, blocks[n]);
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < groups; ++n) fold_group(task, n / shape.groups, n % shape.groups);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit)
      for (int n = 0, count = blocks_of(shape, unit, blocks); n < count; ++n) write(task, blocks[n]);
  }
}

// Backward. xhat = (x - centre) rstd + rest, z = xhat slope + offset, and dx = dz of_dz + constant + xhat of_xhat.
enum BackwardKind { kMiddle, kRstd, kRemainder, kSlope, kOffset, kOfDz, kConstant, kOfXhat };

void prepare_group(const GroupNormGradientTask& task, std::int64_t sample, std::int64_t group) {
  const GroupNormShape& shape = task.shape;
  const double mean = task.mean[sample * shape.groups + group], rstd = task.rstd[sample * shape.groups + group];
  const std::int64_t width = shape.all_channels() / shape.groups;
  for (std::int64_t channel = group * width; channel < (group + 1) * width; ++channel) {
    const Affine affine = affine_of(shape, task.input, sample, channel);
    const double middle = mean - shift_of(shape, task.input, sample, channel);
    const float centre = static_cast<float>(middle);
    const double values[] = {centre, rstd, (static_cast<double>(centre) - middle) * rstd, affine.slope, affine.offset};
    for (int kind = kMiddle; kind <= kOffset; ++kind)
      table_at(task, sample, kind)[channel] = static_cast<float>(values[kind]);
  }
}

struct Place {
  Vector xhat, dz;
};

template <bool kLast>
inline Place place_of(const float* x, const float* dy, const float* const (&table)[8], bool silu, std::int64_t at,
                      int count) {
  const Vector xhat = (load_some(x + at, count) - of_channel<kLast>(table[kMiddle], at, count)) *
                          of_channel<kLast>(table[kRstd], at, count) +
                      of_channel<kLast>(table[kRemainder], at, count);
  const Vector given = load_some(dy + at, count);
  if (!silu) return {xhat, given};
  const Vector z = xhat * of_channel<kLast>(table[kSlope], at, count) + of_channel<kLast>(table[kOffset], at, count);
  const Vector share = sigmoid(z);
  return {xhat, given * share * (1.0f + z * (1.0f - share))};
}

struct Walk {
  const float *x, *dy;
  const float* table[8];
};

Walk walk_of(const GroupNormGradientTask& task, const Block& block) {
  Walk walk{(block.skip ? task.input.skip : task.input.x) + block.in, task.dy + block.out, {}};
  for (int kind = 0; kind < 8; ++kind)
    walk.table[kind] = table_at(task, block.sample, kind) + block.channel;
  return walk;
}

// S, T and X of a block's channels.
void gather_sums(const GroupNormGradientTask& task, const Block& block) {
  const Walk walk = walk_of(task, block);
  const bool silu = task.input.silu;
  const auto sums_of = [&](std::int64_t channel) {
    return sums_at(task, block.sample, block.channel + channel, block.number);
  };
  if (!task.shape.channels_last) {
    float total[3];
    add_columns<3>(block.columns, total, [&](Vector* sums, std::int64_t, std::int64_t at, int count) {
      Place place = place_of<false>(walk.x, walk.dy, walk.table, silu, at, count);
      if (count < kLanes) {  // lanes without a voxel have a dz of 0, but an xhat
        float lanes[kLanes] = {};
        store_first(lanes, place.xhat, count);
        place.xhat = load(lanes);
      }
      sums[0] += place.dz;
      sums[1] += place.dz * place.xhat;
      sums[2] += place.xhat;
    });
    for (int i = 0; i < 3; ++i) sums_of(0)[i] = total[i];
    return;
  }
  for_columns(block.columns, [&](auto width, std::int64_t column, int lanes) {
    constexpr int kV = decltype(width)::vectors == 1 ? 1 : 2;  // the sums of two fit the registers
    for (std::int64_t first = column; first < column + decltype(width)::vectors * kLanes; first += kV * kLanes) {
      Vector total[kV][3] = {};
      add_rows<3, kV>(block.rows, first, lanes, total, [&](Vector* sums, std::int64_t row, std::int64_t at, int count) {
        const Place place = place_of<true>(walk.x + row * block.in_step, walk.dy + row * block.out_step, walk.table,
                                           silu, at, count);
        sums[0] += place.dz;
        sums[1] += place.dz * place.xhat;
        sums[2] += place.xhat;
      });
      for (int j = 0; j < kV; ++j)
        for (int lane = 0; lane < lanes; ++lane)
          for (int i = 0; i < 3; ++i) sums_of(first + j * kLanes + lane)[i] = total[j][i][lane];
    }
  });
}

// A channel's S, T and X: its blocks' together, in the first one's place.
double* total_of(const GroupNormGradientTask& task, std::int64_t sample, std::int64_t channel) {
  double* sums = sums_at(task, sample, channel, 0);
  for (std::int64_t block = 1; block < group_norm_blocks(task.shape); ++block)
    for (int i = 0; i < 3; ++i) sums[i] += sums[block * 3 + i];
  return sums;
}

void finish_group(const GroupNormGradientTask& task, std::int64_t sample, std::int64_t group) {
  const GroupNormShape& shape = task.shape;
  const std::int64_t all = shape.all_channels(), width = all / shape.groups;
  const double voxels = static_cast<double>(shape.voxels), rstd = task.rstd[sample * shape.groups + group];
  double m = 0, t = 0;
  for (std::int64_t channel = group * width; channel < (group + 1) * width; ++channel) {
    const double* sums = total_of(task, sample, channel);
    const double slope = affine_of(shape, task.input, sample, channel).slope;
    m += slope * sums[0];
    t += slope * sums[1];
  }
  m /= static_cast<double>(width) * voxels;
  t /= static_cast<double>(width) * voxels;
  for (std::int64_t channel = group * width; channel < (group + 1) * width; ++channel) {
    const double* sums = sums_at(task, sample, channel, 0);
    const Affine affine = affine_of(shape, task.input, sample, channel);
    const std::int64_t at = sample * all + channel;
    task.dweight[at] = static_cast<float>(affine.scale * sums[1]);
    task.dbias[at] = static_cast<float>(affine.scale * sums[0]);
    task.dshift[at] = static_cast<float>(rstd * (affine.slope * sums[0] - voxels * m - sums[2] * t));
    float* film = task.dscale_shift + sample * 2 * all + channel;
    film[0] = static_cast<float>(affine.weight * sums[1] + affine.bias * sums[0]);
    film[all] = static_cast<float>(sums[0]);
    table_at(task, sample, kOfDz)[channel] = static_cast<float>(rstd * affine.slope);
    table_at(task, sample, kConstant)[channel] = static_cast<float>(-rstd * m);
    table_at(task, sample, kOfXhat)[channel] = static_cast<float>(-rstd * t);
  }
}

template <bool kLast>
void write_gradient(const GroupNormGradientTask& task, const Block& block) {
  Walk walk = walk_of(task, block);
  float* dx = (block.skip ? task.dskip : task.dx) + block.in;
  for (std::int64_t row = 0; row < block.rows; ++row) {
    for (std::int64_t at = 0; at < block.columns; at += kLanes) {
      const int count = lanes_left(at, block.columns);
      const Place place = place_of<kLast>(walk.x, walk.dy, walk.table, task.input.silu, at, count);
      store_some(dx + at,
                 place.dz * of_channel<kLast>(walk.table[kOfDz], at, count) +
                     (of_channel<kLast>(walk.table[kConstant], at, count) +
                      place.xhat * of_channel<kLast>(walk.table[kOfXhat], at, count)),
                 count);
    }
    walk.x += block.in_step;
    walk.dy += block.out_step;
    dx += block.in_step;
  }
}

void backward(const GroupNormGradientTask& task) {
  const GroupNormShape& shape = task.shape;
  const std::int64_t units = units_of(shape), groups = shape.samples * shape.groups;
  const auto write = shape.channels_last ? write_gradient<true> : write_gradient<false>;
#pragma omp parallel num_threads(task.threads)
  {
    Block blocks[2];
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < groups; ++n) prepare_group(task, n / shape.groups, n % shape.groups);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit)
      for (int n = 0, count = blocks_of(shape, unit, blocks); n < count; ++n) gather_sums(task, blocks[n]);
#pragma omp for schedule(static)
    for (std::int64_t n = 0; n < groups; ++n) finish_group(task, n / shape.groups, n % shape.groups);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit)
      for (int n = 0, count = blocks_of(shape, unit, blocks); n < count; ++n) write(task, blocks[n]);
  }
}

}  // namespace

const GroupNormKernels group_norm_silu = {forward, backward};

}  // namespace orthokernels::cpu::ORTHOKERNELS_ISA
