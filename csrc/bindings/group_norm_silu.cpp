#include "cpu/group_norm_silu.h"

#include <cmath>
#include <memory>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "cpu/memory.h"

namespace orthokernels::bindings {
namespace {

using cpu::GroupNormShape;

// Of volumes [samples, channels, voxels], or [samples, voxels, channels].
std::vector<std::int64_t> volume(const GroupNormShape& shape, std::int64_t channels) {
  if (shape.channels_last) return {shape.samples, shape.voxels, channels};
  return {shape.samples, channels, shape.voxels};
}

GroupNormShape shape_from(const py::array& x, const py::object& skip, std::int64_t groups, bool channels_last) {
  check("x", x, {kAny, kAny, kAny});
  const int channels = channels_last ? 2 : 1;
  GroupNormShape shape{x.shape(0), x.shape(channels), 0, x.shape(3 - channels), groups, channels_last};
  if (!skip.is_none()) {
    read_optional("skip", skip, volume(shape, kAny));
    shape.skip_channels = skip.cast<py::array>().shape(channels);
  }
  if (groups < 1 || shape.all_channels() % groups != 0)
    refuse("groups", std::to_string(groups) + " does not divide " + std::to_string(shape.all_channels()) + " channels.");
  return shape;
}

cpu::GroupNormInput input_from(const GroupNormShape& shape, const py::array& x, const py::object& skip,
                               const py::object& weight, const py::object& bias, const py::object& shift,
                               const py::object& scale_shift, bool silu) {
  const std::int64_t all = shape.all_channels();
  cpu::GroupNormInput input{};
  input.x = read("x", x, volume(shape, shape.channels));
  input.skip = read_optional("skip", skip, volume(shape, shape.skip_channels));
  input.weight = read_optional("weight", weight, {all});
  input.bias = read_optional("bias", bias, {all});
  input.shift = read_optional("shift", shift, {shape.samples, all});
  input.scale_shift = read_optional("scale_shift", scale_shift, {shape.samples, 2 * all});
  input.silu = silu;
  return input;
}

// What either direction works in, for as long as it does.
class Workspace {
 public:
  explicit Workspace(const GroupNormShape& shape)
      : sums_(new double[static_cast<std::size_t>(group_norm_sums(shape))]),
        table_(static_cast<std::size_t>(group_norm_table(shape))) {}
  cpu::GroupNormWorkspace get() const { return {sums_.get(), table_.data()}; }

 private:
  std::unique_ptr<double[]> sums_;
  cpu::Floats table_;
};

void group_norm_silu(const py::array& x, py::array& y, py::array& mean, py::array& rstd, std::int64_t groups,
                     const py::object& skip, const py::object& weight, const py::object& bias, const py::object& shift,
                     const py::object& scale_shift, bool silu, double eps, bool channels_last, std::int64_t threads) {
  const GroupNormShape shape = shape_from(x, skip, groups, channels_last);
  cpu::GroupNormTask task{};
  task.shape = shape;
  task.input = input_from(shape, x, skip, weight, bias, shift, scale_shift, silu);
  if (!(eps >= 0) || !std::isfinite(eps)) refuse("eps", std::to_string(eps) + "; must be 0 or above.");
  task.eps = static_cast<float>(eps);
  task.y = write("y", y, volume(shape, shape.all_channels()));
  task.mean = write("mean", mean, {shape.samples, groups});
  task.rstd = write("rstd", rstd, {shape.samples, groups});
  task.threads = threads_from(threads);
  refuse_overlaps({{"y", y}, {"mean", mean}, {"rstd", rstd}},
                  {{"x", x}, {"skip", skip}, {"weight", weight}, {"bias", bias}, {"shift", shift},
                   {"scale_shift", scale_shift}});
  const cpu::GroupNormKernels& kernels = cpu::group_norm_silu_for(cpu::best_isa());
  py::gil_scoped_release released;
  const Workspace workspace(shape);
  task.workspace = workspace.get();
  kernels.forward(task);
}

void group_norm_silu_backward(const py::array& dy, const py::array& x, const py::array& mean, const py::array& rstd,
                              py::array& dx, py::array& dweight, py::array& dbias, py::array& dshift,
                              py::array& dscale_shift, std::int64_t groups, const py::object& skip,
                              const py::object& dskip, const py::object& weight, const py::object& bias,
                              const py::object& shift, const py::object& scale_shift, bool silu, bool channels_last,
                              std::int64_t threads) {
  const GroupNormShape shape = shape_from(x, skip, groups, channels_last);
  const std::int64_t all = shape.all_channels();
  cpu::GroupNormGradientTask task{};
  task.shape = shape;
  task.input = input_from(shape, x, skip, weight, bias, shift, scale_shift, silu);
  task.dy = read("dy", dy, volume(shape, all));
  task.mean = read("mean", mean, {shape.samples, groups});
  task.rstd = read("rstd", rstd, {shape.samples, groups});
  task.dx = write("dx", dx, volume(shape, shape.channels));
  if (skip.is_none() != dskip.is_none()) refuse("dskip", "skip and dskip go together.");
  task.dskip = write_optional("dskip", dskip, volume(shape, shape.skip_channels));
  task.dweight = write("dweight", dweight, {shape.samples, all});
  task.dbias = write("dbias", dbias, {shape.samples, all});
  task.dshift = write("dshift", dshift, {shape.samples, all});
  task.dscale_shift = write("dscale_shift", dscale_shift, {shape.samples, 2 * all});
  task.threads = threads_from(threads);
  refuse_overlaps({{"dx", dx}, {"dskip", dskip}, {"dweight", dweight}, {"dbias", dbias}, {"dshift", dshift},
                   {"dscale_shift", dscale_shift}},
                  {{"dy", dy}, {"x", x}, {"skip", skip}, {"mean", mean}, {"rstd", rstd}, {"weight", weight},
                   {"bias", bias}, {"shift", shift}, {"scale_shift", scale_shift}});
  const cpu::GroupNormKernels& kernels = cpu::group_norm_silu_for(cpu::best_isa());
  py::gil_scoped_release released;
  const Workspace workspace(shape);
  task.workspace = workspace.get();
  kernels.backward(task);
}

}  // namespace

void add_group_norm_silu(py::module_& module) {
  module.def("group_norm_silu", &group_norm_silu, py::arg("x"), py::arg("y"), py::arg("mean"), py::arg("rstd"),
             py::arg("groups"), py::kw_only(), py::arg("skip") = py::none(), py::arg("weight") = py::none(),
             py::arg("bias") = py::none(), py::arg("shift") = py::none(), py::arg("scale_shift") = py::none(),
             py::arg("silu") = true, py::arg("eps") = 1e-5, py::arg("channels_last") = true, py::arg("threads") = 1,
             "Normalise x [samples, voxels, channels], or [samples, channels, voxels], and skip behind it, into y.");
  module.def("group_norm_silu_backward", &group_norm_silu_backward, py::arg("dy"), py::arg("x"), py::arg("mean"),
             py::arg("rstd"), py::arg("dx"), py::arg("dweight"), py::arg("dbias"), py::arg("dshift"),
             py::arg("dscale_shift"), py::arg("groups"), py::kw_only(), py::arg("skip") = py::none(),
             py::arg("dskip") = py::none(), py::arg("weight") = py::none(), py::arg("bias") = py::none(),
             py::arg("shift") = py::none(), py::arg("scale_shift") = py::none(), py::arg("silu") = true,
             py::arg("channels_last") = true, py::arg("threads") = 1,
             "Gradients of group_norm_silu; those of weight and bias are each sample's own.");
}

}  // namespace orthokernels::bindings
