// Memory for weights and scratch: page-aligned, zeroed, on huge pages where the system has them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace stafette {

class Buffer {
 public:
  Buffer() = default;

  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      throw std::bad_alloc();
    }
#ifdef MADV_HUGEPAGE
    if (bytes >= kHugeFrom) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }

  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }

  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  // Makes room for `bytes`; what it held is lost when it has to grow.
  void reserve(std::size_t bytes) {
    if (bytes > bytes_) Buffer(bytes + bytes / 4).swap(*this);
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t size() const { return bytes_; }

 private:
  static constexpr std::size_t kHugeFrom = std::size_t{4} << 20;

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Hands out parts of large buffers, and frees them all at once. Matrices of a model are of a
// megabyte or less each: side by side they fill huge pages.
class Arena {
 public:
  std::uint8_t* take(std::size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (used_ + bytes > (chunks_.empty() ? 0 : chunks_.back().size())) {
      chunks_.emplace_back(bytes > kChunk ? bytes : kChunk);
      used_ = 0;
    }
    std::uint8_t* const taken = chunks_.back().as<std::uint8_t>() + used_;
    used_ += bytes;
    return taken;
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kChunk = std::size_t{32} << 20;

  std::vector<Buffer> chunks_;
  std::size_t used_ = 0;  // of the last chunk
};

}  // namespace stafette
