// The owner's promise, looked at in its ledger. It counts a block up, or strikes a lease out,
// before anything overwrites the bytes: what is unchanged after a copy was so all the time.

#include <algorithm>
#include <atomic>

#include "moving.h"

namespace stafette {
namespace {

uint64_t live(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

bool within(uint64_t offset, uint64_t length, uint64_t size) {
  return length <= size && offset <= size - length;
}

// Finds blocks in a lease: at once where the lease is one run, or where they are asked in order.
class Places {
 public:
  explicit Places(const Job& job)
      : blocks_(job.blocks),
        count_(job.num_blocks),
        one_run_(count_ && uint64_t(blocks_[count_ - 1] - blocks_[0]) + 1 == count_) {}

  // Returns the place, or the number of blocks when it is not there.
  uint64_t find(int64_t block) {
    if (one_run_)
      return block < blocks_[0] ? count_ : std::min(uint64_t(block - blocks_[0]), count_);
    if (next_ >= count_ || blocks_[next_] != block) next_ = first_from(block);
    if (next_ >= count_ || blocks_[next_] != block) return count_;
    return next_++;
  }

 private:
  // As std::lower_bound, without branches: half of them would be foreseen wrongly.
  uint64_t first_from(int64_t block) const {
    uint64_t first = 0;
    for (uint64_t left = count_; left > 1;) {
      const uint64_t half = left / 2;
      first += half & -uint64_t(blocks_[first + half - 1] < block);
      left -= half;
    }
    return first;
  }

  const int64_t* blocks_;
  const uint64_t count_;
  const bool one_run_;
  uint64_t next_ = 0;
};

// Calls visit(place, block) for all blocks of all ranges, until it returns anything but kDone.
template <typename Visit>
Outcome each_block(const Job& job, const Ranges& ranges, Visit visit) {
  Places places(job);
  for (uint64_t i = 0; i < ranges.count; ++i) {
    if (!ranges.lengths[i]) continue;
    const uint64_t last = (ranges.from[i] + ranges.lengths[i] - 1) / job.block_bytes;
    for (uint64_t block = ranges.from[i] / job.block_bytes; block <= last; ++block) {
      const Outcome outcome = visit(places.find(int64_t(block)), block);
      if (outcome != kDone) return outcome;
    }
  }
  return kDone;
}

Outcome check_blocks(const Job& job, const Ranges& ranges) {
  return each_block(job, ranges, [&job](uint64_t place, uint64_t block) {
    if (place == job.num_blocks || block >= job.num_generations) return kOutside;
    return live(job.generations + block) == job.granted[place] ? kDone : kStale;
  });
}

// Quicker than to look for the ranges' blocks, when they are most of the lease.
bool whole_lease_unchanged(const Job& job) {
  for (uint64_t i = 0; i < job.num_blocks; ++i) {
    const uint64_t block = uint64_t(job.blocks[i]);
    if (block >= job.num_generations) return false;
    if (live(job.generations + block) != job.granted[i]) return false;
  }
  return true;
}

}  // namespace

Outcome check_lease(const Job& job) {
  if (live(job.epoch_word) != job.epoch) return kEpochEnded;
  return live(job.lease_word) == job.lease_id ? kDone : kLeaseEnded;
}

Outcome check_all(const Job& job, const Ranges& ranges, Cursor& cursor) {
  cursor.total = 0;
  for (uint64_t i = 0; i < ranges.count; ++i) {
    const uint64_t length = ranges.lengths[i];
    if (!within(ranges.from[i], length, job.from_bytes)) return kOutside;
    if (!within(ranges.into[i], length, job.into_bytes)) return kOutside;
    cursor.total += length;
  }
  const Outcome outcome = check_lease(job);
  return outcome == kDone ? check_blocks(job, ranges) : outcome;
}

Outcome check_unchanged(const Job& job, const Ranges& ranges) {
  std::atomic_thread_fence(std::memory_order_acquire);  // the copy's loads come before these
  const Outcome outcome = check_lease(job);
  if (outcome != kDone) return outcome;
  if (job.num_blocks <= 4 * ranges.count && whole_lease_unchanged(job)) return kDone;
  return check_blocks(job, ranges);
}

}  // namespace stafette
