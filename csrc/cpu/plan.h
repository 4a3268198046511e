// A network as a fixed list of layers on volumes of fixed shape: weights packed, biases folded, every buffer's place
// known beforehand. Built once, run often, one volume at a time: plans run side by side, unless they share the memory
// that they work in.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cpu/conv3d.h"
#include "cpu/normalise.h"

namespace orthokernels::cpu {

using VolumeId = int;
constexpr VolumeId kNone = -1;

// What plans work in, as large as the largest of them. Runs of plans that share it wait for each other.
struct PlanMemory {
  std::mutex running;
  Floats arena, workspace;

  std::int64_t bytes() const { return static_cast<std::int64_t>((arena.size() + workspace.size()) * sizeof(float)); }
  // Gives everything back, until the next run.
  void release() {
    const std::lock_guard<std::mutex> not_while_running(running);
    arena = Floats();
    workspace = Floats();
  }
};

// A group normalisation (weight and bias [channels]) of what a layer reads.
struct Norm {
  std::int64_t groups;
  std::vector<float> weight, bias;
  float eps;
};

// Layers' weights are read where they lie until the layer is added, and packed then; a plan that packs none takes null.

// What a layer's weights are packed for.
struct Packing {
  Isa isa;
  Sides sides;                           // of the input
  std::int64_t channels, skip_channels;  // of both inputs together, and of the second
  bool packs;
};

struct ConvLayer {
  std::string name;
  VolumeId x, skip = kNone, residual = kNone;  // skip is read as if concatenated behind x
  std::unique_ptr<Norm> norm;
  Activation activation = Activation::silu;  // behind the normalisation
  const float* weight = nullptr;             // [out, in, kernel, kernel, kernel]
  std::vector<float> bias;                   // [out]
  std::int64_t out, kernel, stride;
  Algorithm algorithm;
  int tiles = 0;
  std::optional<Conv3d> packed;  // of the weight

  // Whether its input is normalised into a volume of its own first, since it can not be as it is read.
  bool normalised_apart() const {
    return norm && (algorithm == Algorithm::direct || activation != Activation::silu);
  }
  void pack(const Packing& packing);
};

// 4 x 4 x 4, stride 2: every side doubles.
struct TransposedLayer {
  std::string name;
  VolumeId x;
  const float* weight = nullptr;  // [in, out, 4, 4, 4]
  std::vector<float> bias;        // [out]
  std::int64_t out;
  bool relu;
  Floats packed;  // of the weight

  void pack(const Packing& packing);
};

// activation(norm(x) + residual), where no convolution reads it.
struct NormLayer {
  std::string name;
  VolumeId x, residual = kNone;
  std::unique_ptr<Norm> norm;
  Activation activation;
};

// x + projection(attention(qkv(norm(x)))), over all voxels of a volume.
struct AttentionLayer {
  std::string name;
  VolumeId x;
  std::unique_ptr<Norm> norm;
  const float *qkv_weight = nullptr, *out_weight = nullptr;  // [3 C, C], [C, C]
  std::vector<float> qkv_bias, out_bias;                     // [3 C], [C]
  std::int64_t heads;
  bool heads_first;
};

// What `describe` tells of a layer.
struct LayerFacts {
  std::string name, algorithm;
  Sides out;
  std::int64_t channels;
  double operations;      // multiplications and additions of the definition
  double multiplied;      // of the algorithm
  double bytes;           // read and written once, weights included
  double seconds;         // of the last run
};

class Plan {
 public:
  // Without memory to share it has its own. A plan that packs no weights costs next to nothing: it tells whether layers
  // fit each other, takes them without weights, and can not be run.
  explicit Plan(Isa isa, std::shared_ptr<PlanMemory> memory = nullptr, bool packs = true);
  ~Plan();

  VolumeId add_input(Sides sides, std::int64_t channels);
  // Packing weights is what takes time in adding a layer. It needs nothing of the plan but this, so that others may use
  // the plan meanwhile; a layer that comes without packs its own.
  Packing packing(VolumeId x, VolumeId skip = kNone) const;
  VolumeId add_conv(ConvLayer layer);
  VolumeId add_conv_transpose(TransposedLayer layer);
  VolumeId add_norm(NormLayer layer);
  VolumeId add_attention(AttentionLayer layer);
  VolumeId add_resize(std::string name, VolumeId x, Sides sides);
  // Gives every volume its place; nothing can be added afterwards.
  void finish(std::vector<VolumeId> outputs);

  VolumeId volumes() const;  // how many there are
  Sides sides(VolumeId id) const;
  std::int64_t channels(VolumeId id) const;
  const std::vector<VolumeId>& inputs() const;
  const std::vector<VolumeId>& outputs() const;
  bool finished() const;
  bool packs() const;

  // A convolution's bias, such as a time embedding changes. Throws std::invalid_argument for an unknown name.
  void set_bias(const std::string& layer, const std::vector<float>& bias);

  // inputs and outputs in the order of `inputs()` and `outputs()`, [depth, height, width, channels]: the layers read
  // and write there. Outputs overlap nothing.
  void run(const std::vector<const float*>& inputs, const std::vector<float*>& outputs, int threads);

  std::int64_t arena_bytes() const;  // of the volumes in between
  std::int64_t weight_bytes() const;
  std::vector<LayerFacts> describe() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace orthokernels::cpu
