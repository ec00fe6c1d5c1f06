// Memory for weights and scratch: page-aligned, zeroed, on huge pages where the system has them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

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

}  // namespace stafette
