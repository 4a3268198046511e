// Names, sides and counts as Python gives them.
#pragma once

#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "cpu/conv3d.h"

namespace orthokernels::bindings {

constexpr cpu::Algorithm kAlgorithms[] = {cpu::Algorithm::direct, cpu::Algorithm::winograd222,
                                          cpu::Algorithm::winograd144, cpu::Algorithm::winograd244,
                                          cpu::Algorithm::winograd444, cpu::Algorithm::strided222};

inline cpu::Algorithm algorithm_from(const std::string& name) {
  std::string allowed;
  for (cpu::Algorithm algorithm : kAlgorithms) {
    if (name == cpu::name_of(algorithm)) return algorithm;
    allowed += std::string(allowed.empty() ? "" : ", ") + cpu::name_of(algorithm);
  }
  refuse("algorithm", "'" + name + "'; there are " + allowed + ".");
}

inline cpu::Sides sides_from(const std::vector<std::int64_t>& sides) {
  if (sides.size() != 3) refuse("sides", told(sides) + "; must be depth, height and width.");
  const cpu::Sides made{size_from("sides", sides[0]), size_from("sides", sides[1]), size_from("sides", sides[2])};
  if (made.depth > (std::int64_t{1} << 40) / made.height / made.width) refuse("sides", told(sides) + " are too many.");
  return made;
}

inline py::tuple sides_told(cpu::Sides sides) { return py::make_tuple(sides.depth, sides.height, sides.width); }

inline void check_stride(std::int64_t stride) {
  if (stride != 1 && stride != 2) refuse("stride", std::to_string(stride) + "; allowed are 1 and 2.");
}

constexpr std::int64_t kMostChannels = std::int64_t{1} << 16;

// A weight [out, in, kernel, kernel, kernel] of 1 x 1 x 1 or 3 x 3 x 3.
inline void check_weight(const py::array& weight) {
  check("weight", weight, {kAny, kAny, kAny, kAny, kAny});
  const std::int64_t kernel = weight.shape(2);
  if ((kernel != 1 && kernel != 3) || weight.shape(3) != kernel || weight.shape(4) != kernel)
    refuse("weight", "kernels of 1 x 1 x 1 and 3 x 3 x 3 are allowed.");
  if (weight.shape(0) > kMostChannels || weight.shape(1) > kMostChannels) refuse("weight", "more than 65536 channels.");
}

inline int tiles_from(std::int64_t tiles) {
  if (tiles < 0 || tiles > 4096) refuse("tiles", std::to_string(tiles) + "; allowed are 0 to 4096.");
  return static_cast<int>(tiles);
}

}  // namespace orthokernels::bindings
