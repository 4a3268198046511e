#include "cpu/attention_pool.h"

#include <cmath>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "cpu/memory.h"

namespace orthokernels::bindings {
namespace {

void attention_pool(const py::array& q, const py::array& k, const py::array& v, double scale, py::array& out,
                    py::array& looked_at, py::array& log_sum, std::int64_t threads) {
  cpu::PoolingTask task{};
  task.q = read("q", q, {kAny, kAny, kAny});
  task.heads = q.shape(0);
  task.tokens = q.shape(1);
  task.d = q.shape(2);
  task.k = read("k", k, {task.heads, task.tokens, task.d});
  task.v = read("v", v, {task.heads, task.tokens, task.d});
  if (!std::isfinite(scale)) refuse("scale", std::to_string(scale) + "; must be a number.");
  task.scale = static_cast<float>(scale);
  task.out = write("out", out, {task.heads, task.d});
  task.looked_at = write("looked_at", looked_at, {task.heads, task.tokens});
  task.log_sum = write("log_sum", log_sum, {task.heads, task.tokens});
  task.threads = threads_from(threads);
  refuse_overlaps({{"out", out}, {"looked_at", looked_at}, {"log_sum", log_sum}}, {{"q", q}, {"k", k}, {"v", v}});
  const cpu::PoolingKernels& kernels = cpu::attention_pool_for(cpu::best_isa());
  py::gil_scoped_release released;
  const cpu::Floats workspace(
      static_cast<std::size_t>(cpu::pooling_workspace(task.heads, task.tokens, task.d, task.threads)));
  task.workspace = workspace.data();
  kernels.forward(task);
}

}  // namespace

void add_attention_pool(py::module_& module) {
  module.def("attention_pool", &attention_pool, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("scale"),
             py::arg("out"), py::arg("looked_at"), py::arg("log_sum"), py::kw_only(), py::arg("threads") = 1,
             "Attend over q, k and v [heads, tokens, d] and average over the queries.");
}

}  // namespace orthokernels::bindings
