// What the table is made of: memory that grows in place, the hashes of a chain, and their records.

#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace stafette {

constexpr uint32_t kNone = ~0u;
constexpr uint32_t kNoSet = 0;  // of a record that is free
constexpr int kTiers = 4;       // device, host, disk, peer: the fastest first
constexpr size_t kAhead = 16;   // look-ups that are under way at once
constexpr size_t kFields = 1 + kTiers;  // of a group in an answer
constexpr size_t kPage = 2 << 20;
constexpr size_t kBatch = 4096;      // blocks between two looks at the bound
constexpr uint64_t kTicks = 4096;    // the order of use is kept to this share of the bound
constexpr size_t kSlack = 1024;      // stale notes that are always allowed
constexpr uint64_t kSpread = 0x9e3779b97f4a7c15;

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie");

// Addresses for all that may ever come; memory comes as it is written, in large pages where the
// system has them: small ones would cost more than what is written to them.
template <typename T>
class Reserved {
 public:
  explicit Reserved(size_t limit) : bytes_((limit * sizeof(T) + kPage - 1) & ~(kPage - 1)) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(at, bytes_, MADV_HUGEPAGE);
#endif
    items_ = static_cast<T*>(at);
  }
  ~Reserved() { munmap(items_, bytes_); }
  Reserved(const Reserved&) = delete;

  T& operator[](size_t i) { return items_[i]; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }
  void push(const T& value) { items_[size_++] = value; }

 private:
  const size_t bytes_;
  T* items_;
  size_t size_ = 0;
};

struct Record {
  uint64_t key;
  uint32_t set;     // its holders
  uint32_t used;    // the tick of its last match or store
  uint32_t queued;  // the tick under which it waits to be dropped
  uint32_t next;    // in its bucket; in the list of free records
};

// The hashes of one event or prompt, `width` bytes each.
struct Chain {
  const uint8_t* hashes;
  size_t count, width;

  uint64_t key(size_t i) const {
    uint64_t key;
    memcpy(&key, hashes + i * width, sizeof key);
    return key;
  }
};

uint64_t spread(uint64_t key) {
  key *= kSpread;
  return key ^ (key >> 32);
}

// The tiers from which on a block with these tiers counts: what is on the device is on every level.
uint32_t levels_of(uint32_t tiers) { return ((1u << kTiers) - 1) & ~((tiers & -tiers) - 1); }

}  // namespace stafette
