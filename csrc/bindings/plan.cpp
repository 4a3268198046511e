#include "cpu/plan.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/convert.h"
#include "bindings/module.h"

namespace orthokernels::bindings {
namespace {

using cpu::Plan;
using cpu::VolumeId;

std::vector<float> values_of(const char* name, const py::array& array, const std::vector<std::int64_t>& shape) {
  const float* values = read(name, array, shape);
  return std::vector<float>(values, values + array.size());
}

// A layer's weight, checked, where it lies; a plan that packs none does not read it.
const float* weight_of(const Plan& plan, const char* name, const py::array& array,
                       const std::vector<std::int64_t>& shape) {
  const float* weight = read(name, array, shape);
  return plan.packs() ? weight : nullptr;
}

// (groups, weight, bias, eps), or None.
std::unique_ptr<cpu::Norm> norm_from(const py::object& given) {
  if (given.is_none()) return nullptr;
  auto norm = std::make_unique<cpu::Norm>();
  try {
    const py::tuple parts = given.cast<py::tuple>();
    if (parts.size() != 4) throw py::cast_error();
    norm->groups = size_from("groups", parts[0].cast<std::int64_t>());
    norm->weight = values_of("norm weight", parts[1].cast<py::array>(), {kAny});
    norm->bias = values_of("norm bias", parts[2].cast<py::array>(), {kAny});
    norm->eps = parts[3].cast<float>();
  } catch (const py::cast_error&) {
    refuse("norm", "must be a tuple of groups, weight, bias and eps.");
  }
  if (!(norm->eps > 0)) refuse("eps", "must be positive.");
  return norm;
}

cpu::Activation activation_from(const std::string& name) {
  if (name == "none") return cpu::Activation::none;
  if (name == "silu") return cpu::Activation::silu;
  if (name == "relu") return cpu::Activation::relu;
  refuse("activation", "'" + name + "'; there are none, silu, relu.");
}

// Before anything is read: every volume must be one of the plan's.
void check_volume(const Plan& plan, const char* name, VolumeId id, bool optional = false) {
  if (optional && id == cpu::kNone) return;
  if (id < 0 || id >= plan.volumes()) refuse(name, std::to_string(id) + "; the plan has no such volume.");
}

void check_same_sides(const Plan& plan, const char* name, VolumeId id, VolumeId other) {
  const cpu::Sides a = plan.sides(id), b = plan.sides(other);
  if (a.depth != b.depth || a.height != b.height || a.width != b.width)
    refuse(name, "is of another size than what it is put beside.");
}

// A layer's weights, while other threads go on; with the plan itself too.
template <typename Layer>
void pack(const Plan& plan, Layer& layer, VolumeId skip) {
  const cpu::Packing packing = plan.packing(layer.x, skip);
  py::gil_scoped_release released;
  layer.pack(packing);
}

VolumeId add_conv(Plan& plan, std::string name, VolumeId x, const py::array& weight, const py::array& bias,
                  std::int64_t stride, const std::string& algorithm, VolumeId skip, const py::object& norm,
                  const std::string& activation, VolumeId residual, std::int64_t tiles) {
  check_volume(plan, "x", x);
  check_volume(plan, "skip", skip, true);
  check_volume(plan, "residual", residual, true);
  if (skip != cpu::kNone) check_same_sides(plan, "skip", skip, x);
  check_weight(weight);
  check_stride(stride);
  cpu::ConvLayer layer;
  layer.name = std::move(name);
  layer.x = x;
  layer.skip = skip;
  layer.residual = residual;
  layer.norm = norm_from(norm);
  layer.activation = activation_from(activation);
  layer.out = weight.shape(0);
  layer.kernel = weight.shape(2);
  layer.stride = stride;
  const std::int64_t channels = plan.channels(x) + (skip == cpu::kNone ? 0 : plan.channels(skip));
  layer.weight = weight_of(plan, "weight", weight, {kAny, channels, kAny, kAny, kAny});
  layer.bias = values_of("bias", bias, {layer.out});
  layer.algorithm = algorithm_from(algorithm);
  layer.tiles = tiles_from(tiles);
  if (residual != cpu::kNone) {
    if (plan.channels(residual) != layer.out) refuse("residual", "has other channels than the output.");
    if (stride != 1) refuse("residual", "needs a stride of 1.");
    check_same_sides(plan, "residual", residual, x);
  }
  pack(plan, layer, skip);
  return plan.add_conv(std::move(layer));
}

VolumeId add_conv_transpose(Plan& plan, std::string name, VolumeId x, const py::array& weight, const py::array& bias,
                            bool relu) {
  check_volume(plan, "x", x);
  cpu::TransposedLayer layer;
  layer.name = std::move(name);
  layer.x = x;
  layer.weight = weight_of(plan, "weight", weight, {plan.channels(x), kAny, 4, 4, 4});
  layer.out = weight.shape(1);
  layer.bias = values_of("bias", bias, {layer.out});
  layer.relu = relu;
  const cpu::Sides in = plan.sides(x);
  sides_from({2 * in.depth, 2 * in.height, 2 * in.width});  // not too many
  pack(plan, layer, cpu::kNone);
  return plan.add_conv_transpose(std::move(layer));
}

VolumeId add_norm(Plan& plan, std::string name, VolumeId x, const py::object& norm, const std::string& activation,
                  VolumeId residual) {
  check_volume(plan, "x", x);
  check_volume(plan, "residual", residual, true);
  if (norm.is_none()) refuse("norm", "is missing.");
  cpu::NormLayer layer;
  layer.name = std::move(name);
  layer.x = x;
  layer.norm = norm_from(norm);
  layer.activation = activation_from(activation);
  layer.residual = residual;
  if (residual != cpu::kNone) {
    if (plan.channels(residual) != plan.channels(x)) refuse("residual", "has other channels than x.");
    check_same_sides(plan, "residual", residual, x);
  }
  return plan.add_norm(std::move(layer));
}

VolumeId add_attention(Plan& plan, std::string name, VolumeId x, const py::object& norm, const py::array& qkv_weight,
                       const py::array& qkv_bias, const py::array& out_weight, const py::array& out_bias,
                       std::int64_t heads, bool heads_first) {
  check_volume(plan, "x", x);
  if (norm.is_none()) refuse("norm", "is missing.");
  const std::int64_t channels = plan.channels(x);
  cpu::AttentionLayer layer;
  layer.name = std::move(name);
  layer.x = x;
  layer.norm = norm_from(norm);
  layer.qkv_weight = weight_of(plan, "qkv_weight", qkv_weight, {3 * channels, channels});
  layer.qkv_bias = values_of("qkv_bias", qkv_bias, {3 * channels});
  layer.out_weight = weight_of(plan, "out_weight", out_weight, {channels, channels});
  layer.out_bias = values_of("out_bias", out_bias, {channels});
  layer.heads = size_from("heads", heads);
  layer.heads_first = heads_first;
  return plan.add_attention(std::move(layer));
}

VolumeId add_resize(Plan& plan, std::string name, VolumeId x, const std::vector<std::int64_t>& sides) {
  check_volume(plan, "x", x);
  return plan.add_resize(std::move(name), x, sides_from(sides));
}

std::vector<std::int64_t> shape_of(const Plan& plan, VolumeId id) {
  const cpu::Sides sides = plan.sides(id);
  return {sides.depth, sides.height, sides.width, plan.channels(id)};
}

py::list run_plan(Plan& plan, const std::vector<py::array>& inputs, std::int64_t threads) {
  if (!plan.finished()) refuse("plan", "finish() was not called.");
  if (!plan.packs()) refuse("plan", "it was made without weights.");
  if (inputs.size() != plan.inputs().size())
    refuse("inputs", std::to_string(inputs.size()) + " of them; must be " + std::to_string(plan.inputs().size()) + ".");
  std::vector<const float*> sources;
  for (std::size_t n = 0; n < inputs.size(); ++n)
    sources.push_back(read("input", inputs[n], shape_of(plan, plan.inputs()[n])));
  const int count = threads_from(threads);
  py::list made;
  std::vector<float*> targets;
  for (VolumeId id : plan.outputs()) {
    py::array_t<float> array(shape_of(plan, id));
    targets.push_back(array.mutable_data());
    made.append(std::move(array));
  }
  {
    py::gil_scoped_release released;
    plan.run(sources, targets, count);
  }
  return made;
}

py::list describe(const Plan& plan, std::optional<double> operations_per_second,
                  std::optional<double> bytes_per_second) {
  for (const std::optional<double>& rate : {operations_per_second, bytes_per_second})
    if (rate && !(*rate > 0)) refuse("operations_per_second, bytes_per_second", "must be positive.");
  py::list rows;
  for (const cpu::LayerFacts& layer : plan.describe()) {
    py::dict row;
    row["name"] = layer.name;
    row["algorithm"] = layer.algorithm;
    row["sides"] = sides_told(layer.out);
    row["channels"] = layer.channels;
    row["operations"] = layer.operations;
    row["multiplied"] = layer.multiplied;
    row["bytes"] = layer.bytes;
    row["seconds"] = layer.seconds;
    if (operations_per_second && bytes_per_second)
      row["floor"] = std::max(layer.multiplied / *operations_per_second, layer.bytes / *bytes_per_second);
    rows.append(std::move(row));
  }
  return rows;
}

}  // namespace

void add_plan(py::module_& module) {
  py::class_<cpu::PlanMemory, std::shared_ptr<cpu::PlanMemory>>(
      module, "PlanMemory", "What plans work in; those that share it wait for each other.")
      .def(py::init<>())
      .def("release", &cpu::PlanMemory::release, py::call_guard<py::gil_scoped_release>(),
           "Give everything back, until the next run.")
      .def_property_readonly("bytes", &cpu::PlanMemory::bytes, "What it holds; to be asked while no plan runs.");
  py::class_<Plan>(module, "Plan", "A network as a fixed list of layers on volumes of fixed shape.")
      .def(py::init([](std::shared_ptr<cpu::PlanMemory> memory, bool packs) {
             return std::make_unique<Plan>(cpu::best_isa(), std::move(memory), packs);
           }), py::arg("memory") = py::none(), py::kw_only(), py::arg("packs") = true,
           "Without weights packed it costs little, tells whether layers fit each other, and can not be run.")
      .def("add_input",
           [](Plan& plan, const std::vector<std::int64_t>& sides, std::int64_t channels) {
             return plan.add_input(sides_from(sides), size_from("channels", channels));
           }, py::arg("sides"), py::arg("channels"))
      .def("add_conv", &add_conv, py::arg("name"), py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("stride") = 1, py::arg("algorithm") = "direct", py::kw_only(), py::arg("skip") = cpu::kNone,
           py::arg("norm") = py::none(), py::arg("activation") = "silu", py::arg("residual") = cpu::kNone,
           py::arg("tiles") = 0)
      .def("add_conv_transpose", &add_conv_transpose, py::arg("name"), py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::kw_only(), py::arg("relu"), "Of 4 x 4 x 4, stride 2 and padding 1; weight [in, out, 4, 4, 4].")
      .def("add_norm", &add_norm, py::arg("name"), py::arg("x"), py::kw_only(), py::arg("norm"), py::arg("activation"),
           py::arg("residual") = cpu::kNone)
      .def("add_attention", &add_attention, py::arg("name"), py::arg("x"), py::kw_only(), py::arg("norm"),
           py::arg("qkv_weight"), py::arg("qkv_bias"), py::arg("out_weight"), py::arg("out_bias"), py::arg("heads"),
           py::arg("heads_first"))
      .def("add_resize", &add_resize, py::arg("name"), py::arg("x"), py::arg("sides"))
      .def("finish", [](Plan& plan, const std::vector<VolumeId>& outputs) {
        for (VolumeId id : outputs) check_volume(plan, "outputs", id);
        plan.finish(outputs);
      }, py::arg("outputs"))
      .def("run", &run_plan, py::arg("inputs"), py::arg("threads") = 1,
           "Run on arrays [depth, height, width, channels]; returns the outputs likewise.")
      .def("set_bias", [](Plan& plan, const std::string& layer, const py::array& bias) {
        const std::vector<float> values = values_of("bias", bias, {kAny});
        py::gil_scoped_release released;  // it waits for a run to end; other threads need not
        plan.set_bias(layer, values);
      }, py::arg("layer"), py::arg("bias"))
      .def("shape", [](const Plan& plan, VolumeId id) {
        check_volume(plan, "volume", id);
        return shape_of(plan, id);
      }, py::arg("volume"))
      .def("describe", &describe, py::kw_only(), py::arg("operations_per_second") = py::none(),
           py::arg("bytes_per_second") = py::none(),
           "A row for each layer: name, algorithm, sides and channels of its result, operations of the definition and "
           "of the algorithm (multiplied), bytes read and written once, seconds of the last run; and, where a "
           "processor's two rates are given, floor: the seconds that the algorithm's operations or its bytes take.")
      .def_property_readonly("arena_bytes", &Plan::arena_bytes)
      .def_property_readonly("weight_bytes", &Plan::weight_bytes);
}

}  // namespace orthokernels::bindings
