#include "cpu/conv3d.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>

#include "bindings/arrays.h"
#include "bindings/convert.h"
#include "bindings/module.h"
#include "cpu/conv3d_gradient.h"


namespace orthokernels::bindings {
namespace {

using cpu::Algorithm;
using cpu::Conv3d;

std::unique_ptr<Conv3d> make(const py::array& weight, std::int64_t stride, const std::vector<std::int64_t>& sides,
                             const std::string& algorithm, std::int64_t tiles) {
  check_weight(weight);
  check_stride(stride);
  const std::int64_t out = weight.shape(0), in = weight.shape(1), kernel = weight.shape(2);
  const cpu::Sides volume = sides_from(sides);
  const Algorithm chosen = algorithm_from(algorithm);
  const int block = tiles_from(tiles);
  const float* values = static_cast<const float*>(weight.data());
  const cpu::Isa isa = cpu::best_isa();
  py::gil_scoped_release released;
  return std::make_unique<Conv3d>(values, out, in, static_cast<int>(kernel), static_cast<int>(stride), volume, chosen,
                                  isa, block);
}

void run_conv3d(const Conv3d& conv, const py::array& x, py::array& y, const py::object& skip, const py::object& scale,
                const py::object& shift, const py::object& bias, const py::object& residual, const py::object& moments,
                std::int64_t threads) {
  const cpu::Sides in = conv.in_sides(), out = conv.out_sides();
  const std::int64_t outputs = conv.out_channels();
  check("x", x, {in.depth, in.height, in.width, kAny});
  const std::int64_t channels = x.shape(3), rest = conv.in_channels() - channels;
  cpu::ConvInput input{static_cast<const float*>(x.data()), channels};
  if (skip.is_none() ? rest != 0 : rest < 1)
    refuse("x", std::to_string(channels) + " channels; the weights have " + std::to_string(conv.in_channels()) + ".");
  input.skip = read_optional("skip", skip, {in.depth, in.height, in.width, rest});
  input.skip_channels = input.skip != nullptr ? rest : 0;
  input.scale = read_optional("scale", scale, {conv.in_channels()});
  input.shift = read_optional("shift", shift, {conv.in_channels()});
  if ((input.scale == nullptr) != (input.shift == nullptr)) refuse("shift", "scale and shift go together.");
  if (const char* reason = conv.unfit_input(input)) refuse("x", reason);
  cpu::ConvOutput output{write("y", y, {out.depth, out.height, out.width, outputs})};
  output.bias = read_optional("bias", bias, {outputs});
  output.residual = read_optional("residual", residual, {out.depth, out.height, out.width, outputs});
  output.moments = write_optional("moments", moments, {conv.moment_blocks(), 3, outputs});
  refuse_overlaps({{"y", y}, {"moments", moments}},
                  {{"x", x}, {"skip", skip}, {"scale", scale}, {"shift", shift}, {"bias", bias}});
  refuse_overlaps({{"moments", moments}}, {{"residual", residual}});
  if (output.residual != output.y) refuse_overlaps({{"y", y}}, {{"residual", residual}});
  const int count = threads_from(threads);
  py::gil_scoped_release released;
  const cpu::Floats workspace(static_cast<std::size_t>(conv.workspace_floats(count)));
  conv.run(input, output, workspace.data(), count);
}

void weight_gradient(const py::array& x, const py::array& dy, py::array& dw, std::int64_t stride,
                     const std::string& algorithm, std::int64_t threads) {
  check_stride(stride);
  check("x", x, {kAny, kAny, kAny, kAny});
  const cpu::Sides sides = sides_from({x.shape(0), x.shape(1), x.shape(2)});
  const std::int64_t in = x.shape(3);
  const auto made = [stride](std::int64_t side) { return (side + stride - 1) / stride; };
  check("dy", dy, {made(sides.depth), made(sides.height), made(sides.width), kAny});
  const std::int64_t out = dy.shape(3);
  if (in > kMostChannels || out > kMostChannels) refuse(in > kMostChannels ? "x" : "dy", "more than 65536 channels.");
  float* written = write("dw", dw, {out, in, 3, 3, 3});
  refuse_overlaps({{"dw", dw}}, {{"x", x}, {"dy", dy}});
  const Algorithm chosen = algorithm_from(algorithm);
  const int count = threads_from(threads);
  const float *input = static_cast<const float*>(x.data()), *gradient = static_cast<const float*>(dy.data());
  const cpu::Isa isa = cpu::best_isa();
  py::gil_scoped_release released;
  cpu::weight_gradient(input, gradient, written, sides, out, in, static_cast<int>(stride), chosen, isa, count);
}

}  // namespace

void add_conv3d(py::module_& module) {
  py::class_<Conv3d>(module, "Conv3d",
                     "A 3D convolution's weights, packed for one shape of volume and one algorithm; channels last.")
      .def(py::init(&make), py::arg("weight"), py::arg("stride"), py::arg("sides"), py::arg("algorithm"),
           py::arg("tiles") = 0)
      .def("run", &run_conv3d, py::arg("x"), py::arg("y"), py::kw_only(), py::arg("skip") = py::none(),
           py::arg("scale") = py::none(), py::arg("shift") = py::none(), py::arg("bias") = py::none(),
           py::arg("residual") = py::none(), py::arg("moments") = py::none(), py::arg("threads") = 1,
           "Convolve x [depth, height, width, channels] into y; silu(x scale + shift) where scale is given.")
      .def_property_readonly("out_sides",
                             [](const Conv3d& conv) { return sides_told(conv.out_sides()); })
      .def_property_readonly("moment_blocks", &Conv3d::moment_blocks)
      .def_property_readonly("weight_bytes", &Conv3d::weight_bytes)
      .def("workspace_bytes", [](const Conv3d& conv, std::int64_t threads) {
        return conv.workspace_floats(threads_from(threads)) * 4;
      }, py::arg("threads") = 1);
  module.def("conv3d_weight_gradient", &weight_gradient, py::arg("x"), py::arg("dy"), py::arg("dw"), py::kw_only(),
             py::arg("stride"), py::arg("algorithm"), py::arg("threads") = 1,
             "Write the gradient dw [out, in, 3, 3, 3] of a convolution's weights, by one of Winograd's algorithms, "
             "from its input x [depth, height, width, in] and its output's gradient dy [.., out].");
  module.def(
      "conv3d_algorithms",
      [](std::int64_t out, std::int64_t in, std::int64_t kernel, std::int64_t stride,
         const std::vector<std::int64_t>& sides, std::int64_t skip) {
        std::vector<std::string> names;
        for (Algorithm algorithm : kAlgorithms)
          if (Conv3d::unfit(algorithm, out, in, static_cast<int>(kernel), static_cast<int>(stride), sides_from(sides),
                            cpu::best_isa(), skip) == nullptr)
            names.emplace_back(cpu::name_of(algorithm));
        return names;
      },
      py::arg("out"), py::arg("in_"), py::arg("kernel"), py::arg("stride"), py::arg("sides"), py::arg("skip") = 0,
      "Names of the algorithms that can take a convolution, the exact one first; of its input's channels the last "
      "`skip` are those of a second volume.");
  module.def(
      "winograd_instruction_set",
      [](const std::string& widest, std::int64_t out, std::int64_t in, std::int64_t skip) {
        for (cpu::Isa isa : {cpu::Isa::avx512, cpu::Isa::avx2, cpu::Isa::portable})
          if (widest == cpu::name_of(isa)) return cpu::name_of(cpu::winograd_isa(isa, out, in, skip));
        refuse("widest", "'" + widest + "'; there are avx512, avx2 and portable.");
      },
      py::arg("widest"), py::arg("out"), py::arg("in_"), py::arg("skip") = 0,
      "The instruction set whose kernels run Winograd's algorithms, where `widest` is what instruction_set() tells.");
}

}  // namespace orthokernels::bindings
