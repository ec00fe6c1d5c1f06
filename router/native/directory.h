// The records of all blocks, found by their keys.

#pragma once

#include <algorithm>
#include <cstdint>

#include "records.h"

namespace stafette {

class Directory {
 public:
  explicit Directory(uint64_t limit) : records_(limit), heads_(limit + 1) { heads_.push(kNone); }

  Record& operator[](uint32_t at) { return records_[at]; }
  size_t size() const { return records_.size(); }  // those that are free as well
  uint64_t live() const { return live_; }
  size_t bytes() const { return records_.bytes() + heads_.bytes(); }

  uint32_t find(uint64_t key) {
    uint32_t at = heads_[bucket(key)];
    while (at != kNone && records_[at].key != key) at = records_[at].next;
    return at;
  }

  // Has the memory on its way that the next blocks of an event will need.
  void look_ahead(const Chain& chain, size_t i) {
    if (i + kAhead < chain.count) __builtin_prefetch(&heads_[bucket(chain.key(i + kAhead))]);
    if (i + kAhead / 2 >= chain.count) return;
    const uint32_t at = heads_[bucket(chain.key(i + kAhead / 2))];
    if (at != kNone) __builtin_prefetch(&records_[at]);
  }

  // The record of block i, which most often lies behind the one before it.
  uint32_t next(uint32_t before, const Chain& chain, size_t i, size_t& fetched) {
    const uint64_t key = chain.key(i);
    const size_t guess = size_t(before) + 1;
    if (before != kNone && guess < records_.size()) {
      const Record& record = records_[guess];
      if (record.key == key && record.set != kNoSet) return uint32_t(guess);
    }
    if (i == 0) return find(key);
    if (i >= fetched) find_some(chain, i, fetched = std::min(chain.count, i + kAhead));
    return found_[i % kAhead];
  }

  // Returns a new record, without holders.
  uint32_t create(uint64_t key) {
    uint32_t at = free_;
    if (at == kNone) {
      at = uint32_t(records_.size());
      records_.push({});
    } else {
      free_ = records_[at].next;
    }
    split();
    uint32_t& head = heads_[bucket(key)];
    records_[at] = {key, kNoSet, 0, 0, head};
    head = at;
    ++live_;
    return at;
  }

  // The last to go is the first to be used again: what goes leaf first comes back in order.
  void remove(uint32_t at) {
    Record& record = records_[at];
    uint32_t* link = &heads_[bucket(record.key)];
    while (*link != at) link = &records_[*link].next;
    *link = record.next;
    record = {0, kNoSet, 0, 0, free_};
    free_ = at;
    --live_;
  }

 private:
  // Linear hashing: the number of buckets grows one by one, and no event waits for a big rehash.
  size_t bucket(uint64_t key) const {
    const uint64_t hash = spread(key);
    const size_t low = hash & (round_ - 1);
    return low < heads_.size() - round_ ? hash & (2 * round_ - 1) : low;
  }

  // Blocks that lie apart: waits for the memory of many of them at once.
  void find_some(const Chain& chain, size_t from, size_t to) {
    uint32_t* heads[kAhead];
    for (size_t i = from; i < to; ++i)
      __builtin_prefetch(heads[i - from] = &heads_[bucket(chain.key(i))]);
    for (size_t i = from; i < to; ++i) hop(i, *heads[i - from]);
    for (bool more = true; more;) {
      more = false;
      for (size_t i = from; i < to; ++i) {
        const uint32_t at = found_[i % kAhead];
        if (at == kNone || records_[at].key == chain.key(i)) continue;
        hop(i, records_[at].next);
        more = true;
      }
    }
  }

  void hop(size_t i, uint32_t at) {
    found_[i % kAhead] = at;
    if (at != kNone) __builtin_prefetch(&records_[at]);
  }

  void split() {
    if (live_ < heads_.size()) return;
    if (heads_.size() == 2 * round_) round_ *= 2;
    const size_t next = heads_.size() - round_;
    uint32_t at = heads_[next];
    const uint32_t soon = next + kAhead < round_ ? heads_[next + kAhead] : kNone;
    if (soon != kNone) __builtin_prefetch(&records_[soon]);
    heads_[next] = kNone;
    heads_.push(kNone);
    while (at != kNone) {
      const uint32_t following = records_[at].next;
      uint32_t& head = heads_[bucket(records_[at].key)];
      records_[at].next = head;
      head = at;
      at = following;
    }
  }

  Reserved<Record> records_;
  Reserved<uint32_t> heads_;
  size_t round_ = 1;  // buckets when all of them had been split the last time
  uint32_t free_ = kNone;
  uint64_t live_ = 0;
  uint32_t found_[kAhead];  // of the blocks that were looked for at once
};

}  // namespace stafette
