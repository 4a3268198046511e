// CUDA's words for a C++ compiler, enough to run this package's kernels as they are written, on a CPU.
//
// A grid runs block after block. A block's threads take turns: each goes on to its next barrier or shuffle, and when all
// have come to theirs, they go on. A shuffle stops the whole block, which is stricter than a warp. Threads may be turned
// the other way round: where the result depends on it, there is a race. Shared memory holds what the block before left.
#pragma once

#include <math.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(bytes) alignas(bytes)

struct Place {
  unsigned x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline Place threadIdx, blockIdx;

struct __half {
  _Float16 value;
};
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

struct __nv_bfloat16 {
  unsigned short bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const unsigned wide = static_cast<unsigned>(x.bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}
// Of numbers, to the nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  unsigned wide;
  memcpy(&wide, &x, sizeof wide);
  return {static_cast<unsigned short>((wide + 0x7FFFu + (wide >> 16 & 1u)) >> 16)};
}

namespace on_cpu {

constexpr int WARP = 32;
constexpr size_t STACK = 1 << 16;
enum class Stop { nowhere, barrier, shuffle, end };

struct Thread {
  ucontext_t at;
  Stop stop = Stop::nowhere;
  float offered = 0.0f, received = 0.0f;
  int away = 0;
  std::vector<char> stack = std::vector<char>(STACK);
};

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline int running;
inline std::function<void()> body;

inline void stop(Stop why) {
  threads[running].stop = why;
  swapcontext(&threads[running].at, &scheduler);
}

inline void begin() {
  body();
  threads[running].stop = Stop::end;
}

// One turn of every thread that has not ended; false when all have, or when they stopped at different kinds of place.
inline bool turn(bool reversed, bool* fault) {
  const int count = static_cast<int>(threads.size());
  Stop common = Stop::end;
  for (int n = 0; n < count; ++n) {
    running = reversed ? count - 1 - n : n;
    Thread& own = threads[running];
    if (own.stop == Stop::end) continue;
    threadIdx = {static_cast<unsigned>(running), 0, 0};
    swapcontext(&scheduler, &own.at);
    if (own.stop == Stop::end) continue;
    *fault = *fault || (common != Stop::end && common != own.stop);
    common = own.stop;
  }
  for (int n = 0; n < count && common == Stop::shuffle; ++n) {
    const Thread& other = threads[n ^ threads[n].away];
    *fault = *fault || threads[n].stop != Stop::shuffle || threads[n].away != other.away || threads[n].away >= WARP;
    threads[n].received = other.offered;
  }
  return common != Stop::end && !*fault;
}

inline bool run(const unsigned* grid, int count, bool reversed, std::function<void()> kernel) {
  body = std::move(kernel);
  threads = std::vector<Thread>(count);
  bool fault = false;
  for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
        for (Thread& own : threads) {
          getcontext(&own.at);
          own.at.uc_stack.ss_sp = own.stack.data();
          own.at.uc_stack.ss_size = STACK;
          own.at.uc_link = &scheduler;
          own.stop = Stop::nowhere;
          makecontext(&own.at, begin, 0);
        }
        while (turn(reversed, &fault)) {
        }
        if (fault) return false;
      }
    }
  }
  return true;
}

template <typename Parameter>
Parameter taken(unsigned long long word) {
  Parameter value;
  memcpy(&value, &word, sizeof value);
  return value;
}

template <typename... Parameters, size_t... places>
std::function<void()> spread(
    void (*kernel)(Parameters...), const unsigned long long* words, std::index_sequence<places...>) {
  return [=] { kernel(taken<Parameters>(words[places])...); };
}

// A kernel and its arguments, a word each.
template <typename... Parameters>
std::function<void()> call(void (*kernel)(Parameters...), const unsigned long long* words) {
  return spread(kernel, words, std::index_sequence_for<Parameters...>());
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::stop(on_cpu::Stop::barrier); }

inline float __shfl_xor_sync(unsigned, float own, int away) {
  on_cpu::threads[on_cpu::running].offered = own;
  on_cpu::threads[on_cpu::running].away = away;
  on_cpu::stop(on_cpu::Stop::shuffle);
  return on_cpu::threads[on_cpu::running].received;
}
