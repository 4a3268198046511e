// Memory in whole cache lines; large pieces ask for large pages, since Winograd's domain is walked in long strides.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
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
    std::snprintf(text_, sizeof(text_), "no memory for %zu bytes", floats * sizeof(float));
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[64];
};

class Floats {
 public:
  Floats() = default;
  // Throws OutOfMemory.
  explicit Floats(std::size_t count) : size_(count) {
    const std::size_t bytes = count * sizeof(float);
    const std::size_t alignment = bytes >= kLargePage ? kLargePage : 64;
    const std::size_t whole = (bytes + alignment - 1) / alignment * alignment;
    if (whole < bytes) throw OutOfMemory(count);
    data_ = static_cast<float*>(std::aligned_alloc(alignment, whole == 0 ? alignment : whole));
    if (data_ == nullptr) throw OutOfMemory(count);
#if defined(__linux__)
    if (bytes >= kLargePage) madvise(data_, whole, MADV_HUGEPAGE);
#endif
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
  static constexpr std::size_t kLargePage = std::size_t{2} << 20;
  void swap(Floats& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  float* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace orthokernels::cpu
