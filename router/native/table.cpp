// Which worker holds which KV block: a flat table from a block's hash to the set of its holders.
//
// A set is a sorted run of (slot, tiers), kept once for all blocks that have the same holders. Blocks
// that came in one event lie side by side, so a look-up of a chain mostly reads memory in order: it
// visits every block, and is exact whatever was evicted in the middle. Nothing here knows parents.
// Not thread-safe: the caller holds Python's lock through every call.

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <vector>

namespace {

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

// ---------------------------------------------------------------------------- sets of holders

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

// ---------------------------------------------------------------------------- the table

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
        records_(max_entries + kBatch),
        heads_(max_entries + kBatch + 1) {
    heads_.push(kNone);
  }

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
      look_ahead(chain, i);
      const uint32_t at = find(chain.key(i));
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
      at = next(at, chain, i, fetched);
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
    memcpy(groups_ + *out * kFields, ended_.data(), ended_.size() * sizeof(uint32_t));
    return 1 + *out * kFields + ended_.size();
  }

  uint64_t held(uint32_t slot) const { return slot < slots_.size() ? slots_[slot].held : 0; }
  uint64_t num_blocks() const { return live_; }
  uint64_t num_entries() const { return entries_; }
  uint64_t num_evicted() const { return evicted_; }

  uint64_t bytes() const {
    uint64_t total = records_.bytes() + heads_.bytes() + sets_.bytes() + notes_ * 4;
    for (const Slot& slot : slots_) total += sizeof slot + slot.records.capacity() * 4;
    return total;
  }

 private:
  // -- look-up

  // Linear hashing: the number of buckets grows one by one, and no event waits for a big rehash.
  size_t bucket(uint64_t key) const {
    const uint64_t hash = spread(key);
    const size_t low = hash & (round_ - 1);
    return low < heads_.size() - round_ ? hash & (2 * round_ - 1) : low;
  }

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
      look_ahead(chain, i);
      const uint64_t key = chain.key(i);
      uint32_t at = find(key);
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
    records_[at] = {key, kNoSet, tick_, tick_, head};
    head = at;
    ++live_;
    queue(at, tick_);
    return at;
  }

  // The last to go is the first to be used again: what goes leaf first comes back in order.
  void discard(uint32_t at) {
    Record& record = records_[at];
    uint32_t* link = &heads_[bucket(record.key)];
    while (*link != at) link = &records_[*link].next;
    *link = record.next;
    record = {0, kNoSet, 0, 0, free_};
    free_ = at;
    --live_;
    if (notes_ > 2 * live_ + kSlack) sweep();
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
  Reserved<Record> records_;
  Reserved<uint32_t> heads_;
  size_t round_ = 1;  // buckets when all of them had been split the last time
  uint32_t free_ = kNone;
  uint64_t live_ = 0, entries_ = 0, evicted_ = 0;
  Sets sets_;
  std::vector<Slot> slots_;
  std::vector<Alive> alive_;
  std::vector<uint32_t> ended_;
  uint32_t* groups_ = nullptr;  // of the answer that is being written
  uint32_t found_[kAhead];
  std::map<uint32_t, std::vector<uint32_t>> queue_;  // records by the tick of their note
  uint64_t notes_ = 0, touched_ = 0;
  uint32_t tick_ = 1, settled_ = kNone;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

struct stafette_table : Table {
  using Table::Table;
};

EXPORT stafette_table* stafette_table_new(uint64_t max_entries) {
  try {
    return new stafette_table(max_entries);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
EXPORT void stafette_table_free(stafette_table* table) { delete table; }
EXPORT uint64_t stafette_table_store(stafette_table* table, uint32_t slot, uint32_t tiers,
                                     const uint8_t* hashes, size_t count, size_t width) {
  return !table ? 0 : table->store(slot, tiers, {hashes, count, width});
}
EXPORT uint64_t stafette_table_remove(stafette_table* table, uint32_t slot, uint32_t tiers,
                                      const uint8_t* hashes, size_t count, size_t width) {
  return !table ? 0 : table->remove(slot, tiers, {hashes, count, width});
}
EXPORT uint64_t stafette_table_forget(stafette_table* table, uint32_t slot) {
  return !table ? 0 : table->forget(slot);
}
EXPORT size_t stafette_table_match(stafette_table* table, const uint8_t* hashes, size_t count,
                                   size_t width, uint32_t* out) {
  if (!table) return *out = 0, 1;
  return table->match({hashes, count, width}, out);
}
EXPORT uint64_t stafette_table_held(const stafette_table* table, uint32_t slot) {
  return !table ? 0 : table->held(slot);
}
// blocks, (holder, block) entries, entries evicted, bytes
EXPORT void stafette_table_stats(const stafette_table* table, uint64_t* out) {
  if (!table) return;
  out[0] = table->num_blocks();
  out[1] = table->num_entries();
  out[2] = table->num_evicted();
  out[3] = table->bytes();
}
