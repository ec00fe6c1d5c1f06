// Sets of holders: a sorted run of (slot, tiers), kept once for all blocks that have the same.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "records.h"

namespace stafette {

constexpr uint32_t holder(uint32_t slot, uint32_t tiers) { return slot << kTiers | tiers; }
constexpr uint32_t slot_of(uint32_t entry) { return entry >> kTiers; }
constexpr uint32_t tiers_of(uint32_t entry) { return entry & ((1u << kTiers) - 1); }

struct Set {
  std::vector<uint32_t> entries;  // sorted by slot
  uint64_t digest = 0;            // the sum over the entries: order does not matter
  uint32_t refs = 0;
  uint32_t next = kNone;  // with the same bucket
};

// Every set once, counted by the blocks that have it.
class Sets {
 public:
  Sets() : heads_(1 << 8, kNone) { sets_.emplace_back(); }

  const std::vector<uint32_t>& operator[](uint32_t id) const { return sets_[id].entries; }
  size_t bytes() const { return bytes_ + sets_.capacity() * sizeof(Set) + heads_.size() * 4; }

  void take(uint32_t id) { ++sets_[id].refs; }

  void drop(uint32_t id) {
    if (id == kNoSet || --sets_[id].refs) return;
    uint32_t* link = &heads_[bucket(sets_[id].digest)];
    while (*link != id) link = &sets_[*link].next;
    *link = sets_[id].next;
    bytes_ -= sets_[id].entries.size() * 4;
    sets_[id] = Set();
    free_.push_back(id);
    --count_;
  }

  uint32_t tiers(uint32_t id, uint32_t slot) const {
    const auto& entries = sets_[id].entries;
    auto at = std::lower_bound(entries.begin(), entries.end(), holder(slot, 0));
    return at != entries.end() && slot_of(*at) == slot ? tiers_of(*at) : 0;
  }

  // The set that differs in this slot's tiers: those in `clear` gone, those in `add` there.
  uint32_t changed(uint32_t id, uint32_t slot, uint32_t clear, uint32_t add) {
    scratch_ = sets_[id].entries;
    uint64_t digest = sets_[id].digest;
    auto at = std::lower_bound(scratch_.begin(), scratch_.end(), holder(slot, 0));
    const bool there = at != scratch_.end() && slot_of(*at) == slot;
    const uint32_t before = there ? tiers_of(*at) : 0;
    const uint32_t after = (before & ~clear) | add;
    if (before == after) return id;
    if (before) digest -= spread(holder(slot, before));
    if (after) digest += spread(holder(slot, after));
    if (!after) {
      scratch_.erase(at);
    } else if (there) {
      *at = holder(slot, after);
    } else {
      scratch_.insert(at, holder(slot, after));
    }
    return scratch_.empty() ? kNoSet : intern(digest);
  }

 private:
  size_t bucket(uint64_t digest) const { return spread(digest) & (heads_.size() - 1); }

  uint32_t intern(uint64_t digest) {
    for (uint32_t id = heads_[bucket(digest)]; id != kNone; id = sets_[id].next)
      if (sets_[id].digest == digest && sets_[id].entries == scratch_) return id;
    if (count_ >= heads_.size()) grow();
    uint32_t id;
    if (free_.empty()) {
      id = uint32_t(sets_.size());
      sets_.emplace_back();
    } else {
      id = free_.back();
      free_.pop_back();
    }
    Set& set = sets_[id];
    set.entries.assign(scratch_.begin(), scratch_.end());
    set.digest = digest;
    set.next = heads_[bucket(digest)];
    heads_[bucket(digest)] = id;
    bytes_ += set.entries.size() * 4;
    ++count_;
    return id;
  }

  void grow() {
    heads_.assign(heads_.size() * 2, kNone);
    for (uint32_t id = 1; id < sets_.size(); ++id) {
      if (sets_[id].entries.empty()) continue;
      uint32_t& head = heads_[bucket(sets_[id].digest)];
      sets_[id].next = head;
      head = id;
    }
  }

  std::vector<Set> sets_;
  std::vector<uint32_t> free_, heads_, scratch_;
  size_t count_ = 0, bytes_ = 0;
};

}  // namespace stafette
