// What this processor can do: the run-time dispatch of the CPU kernels asks here, and `orthokernels info` prints it.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace orthokernels::cpu {

// Vector extensions that the CPU kernels may use, in ascending order, each with whether processor and operating
// system both support it. Empty where the architecture has none that we ask about.
std::vector<std::pair<std::string, bool>> processor_features();

}  // namespace orthokernels::cpu
