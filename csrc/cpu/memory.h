// Memory in whole cache lines, and large pages: Winograd's domain is walked in long strides, and memory that a process
// never had comes a page at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace orthokernels::cpu {

// Becomes Python's MemoryError, with the size that was asked for.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::size_t floats) {
    const std::size_t bytes = floats > kMostFloats ? std::numeric_limits<std::size_t>::max() : floats * sizeof(float);
    std::snprintf(text_, sizeof(text_), "no memory for %zu bytes", bytes);
  }
  const char* what() const noexcept override { return text_; }
  static constexpr std::size_t kMostFloats = std::numeric_limits<std::size_t>::max() / sizeof(float);

 private:
  char text_[64];
};

constexpr std::size_t kLargePage = std::size_t{2} << 20;

// Ask for large pages where whole ones lie in a piece of memory; worth something only before it is written first.
// Advice alone: nothing changes where there are none.
inline void ask_for_large_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  const auto first = reinterpret_cast<std::uintptr_t>(begin), last = first + bytes;
  const auto from = (first + kLargePage - 1) / kLargePage * kLargePage, to = last / kLargePage * kLargePage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

class Floats {
 public:
  Floats() = default;
  // Throws OutOfMemory.
  explicit Floats(std::size_t count) : size_(count) {
    if (count > OutOfMemory::kMostFloats) throw OutOfMemory(count);
    const std::size_t bytes = count * sizeof(float);
    const std::size_t alignment = bytes >= kLargePage ? kLargePage : 64;
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    if (whole < bytes) throw OutOfMemory(count);
    data_ = static_cast<float*>(std::aligned_alloc(alignment, whole == 0 ? alignment : whole));
    if (data_ == nullptr) throw OutOfMemory(count);
    ask_for_large_pages(data_, whole);
  }
  Floats(Floats&& other) noexcept { swap(other); }
  Floats& operator=(Floats&& other) noexcept {
    swap(other);
    return *this;
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { std::free(data_); }

  float* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void swap(Floats& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  float* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace orthokernels::cpu
