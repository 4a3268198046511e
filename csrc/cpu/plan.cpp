#include "cpu/plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "cpu/attention3d.h"
#include "cpu/conv_transpose3d.h"
#include "cpu/resize.h"

namespace orthokernels::cpu {
namespace {

enum class Kind { normalise, conv, transpose, attend, resize };

struct Volume {
  Sides sides;
  std::int64_t channels;
  int made;               // step, or -1 for an input
  int last_read;          // step
  bool output = false;
  bool normed = false;    // somebody wants its moments
  VolumeId home = kNone;     // the first of those that are written over one another, this one maybe
  std::int64_t offset = -1;  // in the arena
  float* given = nullptr;    // in place of it, during a run: an input's memory, never written to, or an output's
  std::int64_t moment_blocks = 0;
  Floats moments;
  std::int64_t floats() const { return sides.voxels() * channels; }
};

struct Step {
  Kind kind;
  std::string name, algorithm;
  VolumeId x, skip = kNone, residual = kNone, y = kNone;
  std::unique_ptr<Norm> norm;
  Floats scale, shift;
  Activation activation = Activation::none;
  std::optional<Conv3d> conv;
  Floats transposed;  // packed weights
  std::vector<float> bias;
  std::int64_t heads = 0;
  bool heads_first = false;
  double seconds = 0;

  std::int64_t weight_bytes() const {
    return conv ? conv->weight_bytes() : static_cast<std::int64_t>(transposed.size()) * 4;
  }
};

// Of all a plan's volumes together: sums of places and bytes, as 64-bit numbers, can not overflow.
constexpr std::int64_t kMostFloats = std::int64_t{1} << 60;

void grow(Floats& memory, std::int64_t floats) {
  if (static_cast<std::int64_t>(memory.size()) < floats) memory = Floats(static_cast<std::size_t>(floats));
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

struct Plan::Parts {
  Isa isa;
  std::vector<Volume> volumes;
  std::vector<Step> steps;
  std::vector<VolumeId> inputs, outputs;
  bool finished = false, packs = true;
  std::int64_t arena_floats = 0, floats = 0;  // floats: of all volumes
  std::shared_ptr<PlanMemory> memory;

  // A finished plan has places for what it knew then; a volume or a normalisation that came later would have none.
  void refuse_finished() const {
    if (finished) throw std::invalid_argument("plan: it is finished");
  }

  VolumeId add_volume(Sides sides, std::int64_t channels) {
    refuse_finished();
    const std::int64_t voxels = sides.voxels();
    if (voxels < 1 || channels < 1 || channels > (kMostFloats - floats) / voxels)
      throw std::invalid_argument("volume: the plan's volumes are too large");
    floats += voxels * channels;
    Volume volume{};
    volume.sides = sides;
    volume.channels = channels;
    volume.made = static_cast<int>(steps.size());
    volume.last_read = volume.made;
    volume.home = static_cast<VolumeId>(volumes.size());
    volumes.push_back(std::move(volume));
    return volumes.back().home;
  }

  const Volume& volume(VolumeId id) const {
    if (id < 0 || id >= static_cast<VolumeId>(volumes.size())) throw std::invalid_argument("volume: there is no such");
    return volumes[id];
  }

  void read(VolumeId id) {
    volume(id);
    volumes[id].last_read = static_cast<int>(steps.size());
  }

  Step& add_step(Kind kind, std::string name, VolumeId x) {
    refuse_finished();
    read(x);
    Step step{};
    step.kind = kind;
    step.name = std::move(name);
    step.x = x;
    steps.push_back(std::move(step));
    return steps.back();
  }

  void want_moments(const Norm& norm, VolumeId x, VolumeId skip) {
    refuse_finished();
    const std::int64_t channels = volume(x).channels + (skip == kNone ? 0 : volume(skip).channels);
    if (norm.groups < 1 || channels % norm.groups != 0) throw std::invalid_argument("norm: groups do not divide");
    if (static_cast<std::int64_t>(norm.weight.size()) != channels ||
        static_cast<std::int64_t>(norm.bias.size()) != channels)
      throw std::invalid_argument("norm: weight and bias must have a value for each channel");
    volumes[x].normed = true;
    if (skip != kNone) volumes[skip].normed = true;
  }

  // A volume that holds the normalised input of a layer that can not normalise as it reads, or a normalisation alone.
  VolumeId add_normalised(const std::string& name, VolumeId x, VolumeId skip, VolumeId residual,
                          std::unique_ptr<Norm> norm, Activation activation) {
    want_moments(*norm, x, skip);
    for (VolumeId other : {skip, residual})
      if (other != kNone) read(other);
    const std::int64_t channels = volume(x).channels + (skip == kNone ? 0 : volume(skip).channels);
    const VolumeId y = add_volume(volume(x).sides, channels);
    Step& step = add_step(Kind::normalise, name, x);
    step.algorithm = "norm";
    if (activation != Activation::none) step.algorithm += activation == Activation::silu ? ", SiLU" : ", ReLU";
    step.activation = activation;
    step.skip = skip;
    step.residual = residual;
    step.y = y;
    step.norm = std::move(norm);
    step.scale = Floats(static_cast<std::size_t>(channels));
    step.shift = Floats(static_cast<std::size_t>(channels));
    return y;
  }

  void fold(Step& step);
  void run_step(Step& step, int threads);
  void attend(const Step& step, int threads);
  float* place(VolumeId id) {
    const Volume& home = volumes[volumes[id].home];
    return home.given != nullptr ? home.given : memory->arena.data() + home.offset;
  }
  void give(const std::vector<const float*>& from, const std::vector<float*>& to);
  void lay_out();
  std::int64_t workspace_floats(int threads) const;
};

Plan::Plan(Isa isa, std::shared_ptr<PlanMemory> memory, bool packs) : parts_(std::make_unique<Parts>()) {
  parts_->isa = isa;
  parts_->packs = packs;
  parts_->memory = memory ? std::move(memory) : std::make_shared<PlanMemory>();
}
Plan::~Plan() = default;

VolumeId Plan::add_input(Sides sides, std::int64_t channels) {
  const VolumeId id = parts_->add_volume(sides, channels);
  parts_->volumes[id].made = -1;
  parts_->inputs.push_back(id);
  return id;
}

Packing Plan::packing(VolumeId x, VolumeId skip) const {
  parts_->refuse_finished();
  const Volume& own = parts_->volume(x);
  const std::int64_t behind = skip == kNone ? 0 : parts_->volume(skip).channels;
  return {parts_->isa, own.sides, own.channels + behind, behind, parts_->packs};
}

void ConvLayer::pack(const Packing& packing) {
  packed.emplace(packing.packs ? weight : nullptr, out, packing.channels, static_cast<int>(kernel),
                 static_cast<int>(stride), packing.sides, algorithm, packing.isa, tiles,
                 normalised_apart() ? 0 : packing.skip_channels);
}

void TransposedLayer::pack(const Packing& packing) {
  if (packing.packs) packed = packed_taps(weight, out, packing.channels, kTransposedTaps, packing.isa);
}

VolumeId Plan::add_conv(ConvLayer layer) {
  Parts& parts = *parts_;
  const std::int64_t channels = packing(layer.x, layer.skip).channels;
  if (static_cast<std::int64_t>(layer.bias.size()) != layer.out)
    throw std::invalid_argument(layer.name + ": the bias must have a value for each output");
  if (!layer.packed) layer.pack(packing(layer.x, layer.skip));
  if (layer.normalised_apart()) {
    layer.x = parts.add_normalised(layer.name + ".norm", layer.x, layer.skip, kNone, std::move(layer.norm),
                                   layer.activation);
    layer.skip = kNone;
  }
  if (layer.norm) parts.want_moments(*layer.norm, layer.x, layer.skip);
  if (layer.skip != kNone) parts.read(layer.skip);
  if (layer.residual != kNone) parts.read(layer.residual);
  const VolumeId y = parts.add_volume(layer.packed->out_sides(), layer.out);
  Step& step = parts.add_step(Kind::conv, layer.name, layer.x);
  step.algorithm = name_of(layer.algorithm);
  step.skip = layer.skip;
  step.residual = layer.residual;
  step.y = y;
  if (layer.norm) {
    step.norm = std::move(layer.norm);
    step.scale = Floats(static_cast<std::size_t>(channels));
    step.shift = Floats(static_cast<std::size_t>(channels));
  }
  step.conv = std::move(layer.packed);
  step.bias = std::move(layer.bias);
  return y;
}

VolumeId Plan::add_conv_transpose(TransposedLayer layer) {
  Parts& parts = *parts_;
  const Packing own = packing(layer.x);
  const Sides in = own.sides;
  if (static_cast<std::int64_t>(layer.bias.size()) != layer.out)
    throw std::invalid_argument(layer.name + ": the bias must have a value for each output");
  if (layer.packed.size() == 0) layer.pack(own);
  const VolumeId y = parts.add_volume({2 * in.depth, 2 * in.height, 2 * in.width}, layer.out);
  Step& step = parts.add_step(Kind::transpose, std::move(layer.name), layer.x);
  step.algorithm = "direct";
  step.activation = layer.relu ? Activation::relu : Activation::none;
  step.y = y;
  step.transposed = std::move(layer.packed);
  step.bias = std::move(layer.bias);
  return y;
}

VolumeId Plan::add_norm(NormLayer layer) {
  return parts_->add_normalised(layer.name, layer.x, kNone, layer.residual, std::move(layer.norm), layer.activation);
}

VolumeId Plan::add_attention(AttentionLayer layer) {
  Parts& parts = *parts_;
  const std::int64_t channels = parts.volume(layer.x).channels;
  const Sides sides = parts.volume(layer.x).sides;
  if (layer.heads < 1 || channels % layer.heads != 0) throw std::invalid_argument(layer.name + ": heads do not divide");
  ConvLayer qkv, projection;
  qkv.name = layer.name + ".qkv";
  qkv.x = parts.add_normalised(layer.name + ".norm", layer.x, kNone, kNone, std::move(layer.norm), Activation::none);
  qkv.weight = layer.qkv_weight;
  qkv.bias = std::move(layer.qkv_bias);
  qkv.out = 3 * channels;
  projection.weight = layer.out_weight;
  projection.bias = std::move(layer.out_bias);
  projection.out = channels;
  for (ConvLayer* conv : {&qkv, &projection}) conv->kernel = conv->stride = 1, conv->algorithm = Algorithm::direct;
  const VolumeId tokens = add_conv(std::move(qkv));
  const VolumeId attended = parts.add_volume(sides, channels);
  Step& step = parts.add_step(Kind::attend, layer.name, tokens);
  step.algorithm = "softmax";
  step.y = attended;
  step.heads = layer.heads;
  step.heads_first = layer.heads_first;
  projection.name = layer.name + ".proj_out";
  projection.x = attended;
  projection.residual = layer.x;
  return add_conv(std::move(projection));
}

VolumeId Plan::add_resize(std::string name, VolumeId x, Sides sides) {
  const VolumeId y = parts_->add_volume(sides, parts_->volume(x).channels);
  Step& step = parts_->add_step(Kind::resize, std::move(name), x);
  step.algorithm = "trilinear";
  step.y = y;
  return y;
}

void Plan::finish(std::vector<VolumeId> outputs) {
  Parts& parts = *parts_;
  parts.refuse_finished();
  if (outputs.empty()) throw std::invalid_argument("outputs: none");
  for (VolumeId id : outputs) {
    parts.volume(id);
    parts.volumes[id].output = true;
    parts.volumes[id].last_read = static_cast<int>(parts.steps.size());
  }
  for (VolumeId id : parts.inputs) parts.volumes[id].made = -1;
  parts.outputs = std::move(outputs);
  parts.lay_out();
  parts.finished = true;
}

// First place that is free for a volume's whole life, largest volumes first.
void Plan::Parts::lay_out() {
  for (std::size_t n = 0; n < steps.size(); ++n) {
    Step& step = steps[n];
    Volume& y = volumes[step.y];
    if (y.normed) {
      y.moment_blocks = step.kind == Kind::conv ? step.conv->moment_blocks() : moment_blocks(y.sides.voxels());
      y.moments = Floats(static_cast<std::size_t>(y.moment_blocks * 3 * y.channels));
    }
    if (step.residual == kNone || step.residual == step.x || step.residual == step.skip) continue;
    const Volume& residual = volumes[step.residual];
    const bool dies = residual.last_read == static_cast<int>(n) && !residual.output && residual.made >= 0;
    if (dies) y.home = residual.home;
  }
  for (VolumeId id : inputs)
    if (volumes[id].normed) {
      volumes[id].moment_blocks = moment_blocks(volumes[id].sides.voxels());
      volumes[id].moments = Floats(static_cast<std::size_t>(volumes[id].moment_blocks * 3 * volumes[id].channels));
    }
  // A volume that is written over another lives in the same place: one life for both. Inputs and outputs live outside.
  struct Life {
    int from, to;
    std::int64_t floats, offset;
    bool outside;
  };
  std::vector<Life> lives;
  std::map<VolumeId, std::size_t> life_of;
  for (VolumeId id = 0; id < static_cast<VolumeId>(volumes.size()); ++id) {
    const Volume& own = volumes[id];
    if (own.home == id) {
      life_of[id] = lives.size();
      lives.push_back({own.made, own.last_read, (own.floats() + 15) / 16 * 16, -1, own.made < 0});
    }
    Life& life = lives[life_of[own.home]];
    life.to = std::max(life.to, own.last_read);
    life.outside |= own.output;
  }
  std::vector<Life*> order;
  for (Life& life : lives)
    if (!life.outside) order.push_back(&life);
  std::stable_sort(order.begin(), order.end(), [](const Life* a, const Life* b) { return a->floats > b->floats; });
  std::vector<Life*> placed;
  for (Life* life : order) {
    std::vector<std::pair<std::int64_t, std::int64_t>> taken;
    for (const Life* other : placed)
      if (life->from <= other->to && other->from <= life->to) taken.emplace_back(other->offset, other->floats);
    std::sort(taken.begin(), taken.end());
    std::int64_t offset = 0;
    for (const auto& [start, floats] : taken) {
      if (offset + life->floats <= start) break;
      offset = std::max(offset, start + floats);
    }
    life->offset = offset;
    arena_floats = std::max(arena_floats, offset + life->floats);
    placed.push_back(life);
  }
  for (const auto& [id, n] : life_of) volumes[id].offset = lives[n].offset;
}

// Inputs are read where they lie, outputs are made where they are wanted.
void Plan::Parts::give(const std::vector<const float*>& from, const std::vector<float*>& to) {
  for (Volume& own : volumes) own.given = nullptr;
  for (std::size_t n = 0; n < from.size(); ++n) volumes[inputs[n]].given = const_cast<float*>(from[n]);
  for (std::size_t n = 0; n < to.size(); ++n) {
    Volume& home = volumes[volumes[outputs[n]].home];
    if (home.given == nullptr) home.given = to[n];
  }
}

std::int64_t Plan::Parts::workspace_floats(int threads) const {
  std::int64_t most = 1;
  for (const Step& step : steps) {
    if (step.kind == Kind::conv) most = std::max(most, step.conv->workspace_floats(threads));
    if (step.kind == Kind::attend) {
      const Volume& y = volumes[step.y];
      most = std::max(most, attention_workspace_floats(y.sides.voxels(), step.heads, y.channels / step.heads, threads,
                                                       isa));
    }
  }
  return most;
}

void Plan::Parts::fold(Step& step) {
  if (!step.norm) return;
  std::vector<ChannelMoments> moments;
  for (VolumeId id : {step.x, step.skip})
    if (id != kNone) moments.push_back({volumes[id].moments.data(), volumes[id].moment_blocks, volumes[id].channels});
  const Norm& norm = *step.norm;
  fold_group_norm(moments, norm.groups, norm.weight.data(), norm.bias.data(), norm.eps, step.scale.data(),
                  step.shift.data());
}

// q, k and v lie in one volume: each head's behind one another where its heads come first, else all q before all k.
void Plan::Parts::attend(const Step& step, int threads) {
  const Volume& y = volumes[step.y];
  const std::int64_t tokens = y.sides.voxels(), d = y.channels / step.heads;
  const float* q = place(step.x);
  const std::int64_t apart = step.heads_first ? d : y.channels;
  AttentionTask task{};
  task.q = q, task.k = q + apart, task.v = q + 2 * apart;
  task.head_step = step.heads_first ? 3 * d : d, task.step = 3 * y.channels;
  task.out = place(step.y), task.out_head_step = d, task.out_step = y.channels;
  task.heads = step.heads, task.tokens = tokens, task.d = d;
  const std::int64_t sides[3] = {y.sides.depth, y.sides.height, y.sides.width};
  for (int axis = 0; axis < 3; ++axis) task.grid[axis] = task.window[axis] = sides[axis];
  task.scale = 1.0f / std::sqrt(static_cast<float>(d));
  task.workspace = memory->workspace.data();
  task.threads = threads;
  attention3d_for(isa).forward(task);
}

void Plan::Parts::run_step(Step& step, int threads) {
  const Volume& x = volumes[step.x];
  Volume& y = volumes[step.y];
  const float* skip = step.skip == kNone ? nullptr : place(step.skip);
  const float* residual = step.residual == kNone ? nullptr : place(step.residual);
  const std::int64_t skip_channels = step.skip == kNone ? 0 : volumes[step.skip].channels;
  fold(step);
  switch (step.kind) {
    case Kind::normalise:
      normalise_for(isa).apply({place(step.x), x.channels, skip, skip_channels, x.sides.voxels(), step.scale.data(),
                                step.shift.data(), residual, step.activation, place(step.y), threads});
      break;
    case Kind::conv: {
      ConvInput input{place(step.x), x.channels, skip, skip_channels};
      if (step.norm) input.scale = step.scale.data(), input.shift = step.shift.data();
      ConvOutput output{place(step.y), step.bias.data(), residual};
      if (y.normed) output.moments = y.moments.data();
      step.conv->run(input, output, memory->workspace.data(), threads);
      return;
    }
    case Kind::transpose:
      conv_transpose3d_for(isa).run({x.sides, x.channels, y.channels, place(step.x), step.transposed.data(),
                                     step.bias.data(), step.activation == Activation::relu, place(step.y), threads});
      break;
    case Kind::attend:
      attend(step, threads);
      break;
    case Kind::resize:
      resize_for(isa).trilinear(place(step.x), x.sides, place(step.y), y.sides, x.channels, threads);
      break;
  }
  if (y.normed)
    normalise_for(isa).moments(place(step.y), y.sides.voxels(), y.channels, y.moments.data(), threads);
}

void Plan::run(const std::vector<const float*>& inputs, const std::vector<float*>& outputs, int threads) {
  Parts& parts = *parts_;
  if (!parts.finished) throw std::invalid_argument("plan: it is not finished");
  if (!parts.packs) throw std::invalid_argument("plan: it packed no weights");
  const std::lock_guard<std::mutex> one_at_a_time(parts.memory->running);
  grow(parts.memory->arena, parts.arena_floats);
  grow(parts.memory->workspace, parts.workspace_floats(threads));
  parts.give(inputs, outputs);
  for (VolumeId id : parts.inputs) {
    const Volume& own = parts.volumes[id];
    if (own.normed)
      normalise_for(parts.isa).moments(own.given, own.sides.voxels(), own.channels, own.moments.data(), threads);
  }
  for (Step& step : parts.steps) {
    const double start = now();
    parts.run_step(step, threads);
    step.seconds = now() - start;
  }
  // An input that is an output too, or one output twice.
  for (std::size_t n = 0; n < outputs.size(); ++n) {
    const float* made = parts.place(parts.outputs[n]);
    const Volume& own = parts.volumes[parts.outputs[n]];
    if (made != outputs[n]) std::memcpy(outputs[n], made, static_cast<std::size_t>(own.floats()) * sizeof(float));
  }
}

void Plan::set_bias(const std::string& layer, const std::vector<float>& bias) {
  const std::lock_guard<std::mutex> not_while_running(parts_->memory->running);
  for (Step& step : parts_->steps) {
    if (step.kind != Kind::conv || step.name != layer) continue;
    if (step.bias.size() != bias.size()) throw std::invalid_argument("bias: it must have a value for each output");
    step.bias = bias;
    return;
  }
  throw std::invalid_argument("layer: no convolution is called " + layer);
}

VolumeId Plan::volumes() const { return static_cast<VolumeId>(parts_->volumes.size()); }
Sides Plan::sides(VolumeId id) const { return parts_->volume(id).sides; }
std::int64_t Plan::channels(VolumeId id) const { return parts_->volume(id).channels; }
const std::vector<VolumeId>& Plan::inputs() const { return parts_->inputs; }
const std::vector<VolumeId>& Plan::outputs() const { return parts_->outputs; }
bool Plan::finished() const { return parts_->finished; }
bool Plan::packs() const { return parts_->packs; }
std::int64_t Plan::arena_bytes() const { return parts_->arena_floats * 4; }

std::int64_t Plan::weight_bytes() const {
  std::int64_t sum = 0;
  for (const Step& step : parts_->steps) sum += step.weight_bytes();
  return sum;
}

std::vector<LayerFacts> Plan::describe() const {
  std::vector<LayerFacts> facts;
  for (const Step& step : parts_->steps) {
    const Volume &x = parts_->volumes[step.x], &y = parts_->volumes[step.y];
    LayerFacts own{step.name, step.algorithm, y.sides, y.channels, 0, 0, 0, step.seconds};
    double floats = static_cast<double>(x.floats() + y.floats());
    for (VolumeId id : {step.skip, step.residual})
      if (id != kNone) floats += static_cast<double>(parts_->volumes[id].floats());
    own.bytes = 4 * floats + static_cast<double>(step.weight_bytes());
    if (step.kind == Kind::conv) {
      own.operations = step.conv->operations();
      own.multiplied = step.conv->operations_done();
    }
    if (step.kind == Kind::transpose) {
      constexpr double met = kTransposedTaps / 8;
      own.operations = own.multiplied = 2 * met * static_cast<double>(x.channels) * static_cast<double>(y.floats());
    }
    if (step.kind == Kind::attend) {
      const double tokens = static_cast<double>(y.sides.voxels());
      own.operations = own.multiplied = 4 * tokens * tokens * static_cast<double>(y.channels);
    }
    facts.push_back(std::move(own));
  }
  return facts;
}

}  // namespace orthokernels::cpu
