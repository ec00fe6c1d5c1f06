// Which worker holds which KV block: a flat table from a block's hash to the set of its holders.
//
// Blocks that came in one event lie side by side, so a look-up of a chain mostly reads memory in
// order: it visits every block, and is exact whatever was evicted in the middle. Nothing here knows
// parents. Not thread-safe: the caller holds Python's lock through every call.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "directory.h"
#include "records.h"
#include "sets.h"

namespace stafette {

struct Slot {
  std::vector<uint32_t> records;  // every one that it holds, and some that it held
  uint64_t held = 0;
};

struct Alive {
  uint32_t slot;
  uint32_t levels;  // on which its chain is whole so far
  uint32_t depths[kTiers];
};

class Table {
 public:
  explicit Table(uint64_t max_entries)
      : max_entries_(max_entries),
        granule_(std::max<uint64_t>(1, max_entries / kTicks)),
        records_(max_entries + kBatch) {}

  uint64_t store(uint32_t slot, uint32_t tiers, const Chain& chain) {
    if (slot >= slots_.size()) slots_.resize(slot + 1);
    uint64_t fresh = 0;
    for (size_t from = 0; from < chain.count; from += kBatch) {
      const size_t to = std::min(chain.count, from + kBatch);
      fresh += store_some(slot, tiers, chain, from, to);
      touch(to - from);
      evict();
    }
    return fresh;
  }

  uint64_t remove(uint32_t slot, uint32_t tiers, const Chain& chain) {
    if (slot >= slots_.size()) return 0;
    uint64_t gone = 0;
    uint32_t from = kNone, to = kNone;
    for (size_t i = 0; i < chain.count; ++i) {
      records_.look_ahead(chain, i);
      const uint32_t at = records_.find(chain.key(i));
      if (at == kNone) continue;
      const uint32_t old = records_[at].set;
      if (old != from) {
        from = old;
        to = sets_.changed(old, slot, tiers, 0);
      }
      if (to == old) continue;
      gone += give(at, slot, to);
    }
    tidy(slots_[slot], slot);
    return gone;
  }

  uint64_t forget(uint32_t slot) {
    if (slot >= slots_.size()) return 0;
    const uint64_t held = slots_[slot].held;
    std::vector<uint32_t> list;
    list.swap(slots_[slot].records);
    uint32_t from = kNone, to = kNone;
    for (uint32_t at : list) {
      const uint32_t old = records_[at].set;
      if (old != from) {
        from = old;
        to = sets_.changed(old, slot, ~0u, 0);
      }
      give(at, slot, to);
    }
    return held;
  }

  // Writes who holds the chain's beginning: the number of groups, for each of them how many slots
  // it has and how many blocks those hold on each level, then all slots. Returns the words written.
  size_t match(const Chain& chain, uint32_t* out) {
    groups_ = out + 1;
    *out = 0;
    ended_.clear();
    alive_.clear();
    uint32_t at = kNone, set = kNoSet;
    size_t i = 0, fetched = 0;
    for (; i < chain.count; ++i) {
      at = records_.next(at, chain, i, fetched);
      if (at == kNone) break;
      Record& record = records_[at];
      if (record.set != set) {
        set = record.set;
        if (i == 0) begin(sets_[set]);
        else narrow(sets_[set], uint32_t(i), *out);
        if (alive_.empty()) break;
      }
      record.used = tick_;
    }
    for (Alive& one : alive_) finish(one, one.levels, uint32_t(i), *out);
    touch(i);
    std::copy(ended_.begin(), ended_.end(), groups_ + *out * kFields);
    return 1 + *out * kFields + ended_.size();
  }

  uint64_t held(uint32_t slot) const { return slot < slots_.size() ? slots_[slot].held : 0; }
  uint64_t num_blocks() const { return records_.live(); }
  uint64_t num_entries() const { return entries_; }
  uint64_t num_evicted() const { return evicted_; }

  uint64_t bytes() const {
    uint64_t total = records_.bytes() + sets_.bytes() + notes_ * 4;
    for (const Slot& slot : slots_) total += sizeof slot + slot.records.capacity() * 4;
    return total;
  }

 private:
  // -- look-up

  void begin(const std::vector<uint32_t>& entries) {
    for (uint32_t entry : entries)
      alive_.push_back({slot_of(entry), levels_of(tiers_of(entry)), {0, 0, 0, 0}});
  }

  void narrow(const std::vector<uint32_t>& entries, uint32_t depth, uint32_t& num_groups) {
    size_t kept = 0, at = 0;
    for (Alive& one : alive_) {
      while (at < entries.size() && slot_of(entries[at]) < one.slot) ++at;
      const bool here = at < entries.size() && slot_of(entries[at]) == one.slot;
      const uint32_t levels = here ? levels_of(tiers_of(entries[at])) : 0;
      const uint32_t ended = one.levels & ~levels;
      one.levels &= levels;
      if (one.levels == 0) {
        finish(one, ended, depth, num_groups);
        continue;
      }
      for (int level = 0; ended && level < kTiers; ++level)
        if (ended >> level & 1) one.depths[level] = depth;
      alive_[kept++] = one;
    }
    alive_.resize(kept);
  }

  void finish(Alive& one, uint32_t levels, uint32_t depth, uint32_t& num_groups) {
    for (int level = 0; level < kTiers; ++level)
      if (levels >> level & 1) one.depths[level] = depth;
    ended_.push_back(one.slot);
    uint32_t* last = groups_ + (num_groups - 1) * kFields;
    if (num_groups && memcmp(last + 1, one.depths, sizeof one.depths) == 0) {
      ++*last;
      return;
    }
    uint32_t* group = groups_ + num_groups++ * kFields;
    *group = 1;
    memcpy(group + 1, one.depths, sizeof one.depths);
  }

  // -- changes

  uint64_t store_some(uint32_t slot, uint32_t tiers, const Chain& chain, size_t begin, size_t end) {
    uint64_t fresh = 0;
    uint32_t from = kNone, to = kNone;
    bool holds = false;  // the slot is in `from`
    for (size_t i = begin; i < end; ++i) {
      records_.look_ahead(chain, i);
      const uint64_t key = chain.key(i);
      uint32_t at = records_.find(key);
      if (at == kNone) at = create(key);
      const uint32_t old = records_[at].set;
      records_[at].used = tick_;
      if (old != from) {
        from = old;
        holds = sets_.tiers(old, slot) != 0;
        to = sets_.changed(old, slot, 0, tiers);
      }
      if (to == old) continue;
      sets_.take(to);
      records_[at].set = to;
      sets_.drop(old);
      if (holds) continue;
      slots_[slot].records.push_back(at);
      ++slots_[slot].held;
      ++entries_;
      ++fresh;
    }
    return fresh;
  }

  uint32_t create(uint64_t key) {
    const uint32_t at = records_.create(key);
    queue(at, tick_);
    return at;
  }

  void discard(uint32_t at) {
    records_.remove(at);
    if (notes_ > 2 * records_.live() + kSlack) sweep();
  }

  // Gives a record that the slot holds its new set; returns 1 when the slot is not in it any more.
  uint64_t give(uint32_t at, uint32_t slot, uint32_t to) {
    const uint32_t old = records_[at].set;
    if (to == old) return 0;
    if (to != kNoSet) sets_.take(to);
    const bool gone = sets_.tiers(to, slot) == 0;
    records_[at].set = to;
    sets_.drop(old);
    if (gone) {
      --slots_[slot].held;
      --entries_;
    }
    if (to == kNoSet) discard(at);
    return gone;
  }

  // -- the order of use

  void touch(size_t count) {
    touched_ += count;
    if (touched_ < granule_) return;
    touched_ = 0;
    if (++tick_ == kNone) restart();
  }

  void queue(uint32_t at, uint32_t tick) {
    records_[at].queued = tick;
    queue_[tick].push_back(at);
    ++notes_;
  }

  // Drops the blocks that were used longest ago, for all their holders.
  void evict() {
    while (entries_ > max_entries_ && !queue_.empty()) {
      const auto oldest = queue_.begin();
      if (settled_ != oldest->first) settle(oldest->first);
      if (oldest->second.empty()) {
        queue_.erase(oldest);
        continue;
      }
      const uint32_t at = oldest->second.back();
      oldest->second.pop_back();
      --notes_;
      const Record& record = records_[at];
      if (record.set == kNoSet || record.queued != oldest->first) continue;
      if (record.used != oldest->first) queue(at, record.used);
      else drop(at);
    }
  }

  // Moves what was used meanwhile to where it belongs, in its order: a chain stays a chain.
  void settle(uint32_t tick) {
    settled_ = tick;
    std::vector<uint32_t> notes;
    notes.swap(queue_[tick]);
    notes_ -= notes.size();
    for (uint32_t at : notes) {
      const Record& record = records_[at];
      if (record.set != kNoSet && record.queued == tick) queue(at, record.used);
    }
  }

  void drop(uint32_t at) {
    const std::vector<uint32_t> holders = sets_[records_[at].set];
    for (uint32_t entry : holders) {
      Slot& slot = slots_[slot_of(entry)];
      --slot.held;
      --entries_;
    }
    evicted_ += holders.size();
    const uint32_t set = records_[at].set;
    records_[at].set = kNoSet;
    sets_.drop(set);
    discard(at);
    for (uint32_t entry : holders) tidy(slots_[slot_of(entry)], slot_of(entry));
  }

  // -- stale notes

  void tidy(Slot& slot, uint32_t number) {
    if (slot.records.size() <= 2 * slot.held + kSlack) return;
    std::vector<bool> seen(records_.size());
    std::vector<uint32_t> kept;
    kept.reserve(slot.held);
    for (uint32_t at : slot.records) {
      if (seen[at] || !sets_.tiers(records_[at].set, number)) continue;
      seen[at] = true;
      kept.push_back(at);
    }
    slot.records.swap(kept);
  }

  void sweep() {
    notes_ = 0;
    for (auto bucket = queue_.begin(); bucket != queue_.end();) {
      auto& notes = bucket->second;
      const uint32_t tick = bucket->first;
      notes.erase(std::remove_if(notes.begin(), notes.end(),
                                 [&](uint32_t at) {
                                   const Record& record = records_[at];
                                   return record.set == kNoSet || record.queued != tick;
                                 }),
                  notes.end());
      notes.shrink_to_fit();
      notes_ += notes.size();
      bucket = notes.empty() ? queue_.erase(bucket) : std::next(bucket);
    }
  }

  // The ticks are used up, after four billion: everything is as old as everything else.
  void restart() {
    tick_ = 2;
    settled_ = kNone;
    queue_.clear();
    notes_ = 0;
    for (uint32_t at = 0; at < records_.size(); ++at) {
      if (records_[at].set == kNoSet) continue;
      records_[at].used = 1;
      queue(at, 1);
    }
  }

  const uint64_t max_entries_, granule_;
  Directory records_;
  uint64_t entries_ = 0, evicted_ = 0;
  Sets sets_;
  std::vector<Slot> slots_;
  std::vector<Alive> alive_;
  std::vector<uint32_t> ended_;
  uint32_t* groups_ = nullptr;  // of the answer that is being written
  std::map<uint32_t, std::vector<uint32_t>> queue_;  // records by the tick of their note
  uint64_t notes_ = 0, touched_ = 0;
  uint32_t tick_ = 1, settled_ = kNone;
};

}  // namespace stafette
