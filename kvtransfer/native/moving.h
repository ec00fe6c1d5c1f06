// What a reader does in one call: copy scattered ranges of a peer's region into a region of ours,
// and look before and afterwards whether what the owner promised still holds.
#pragma once

#include <cstdint>

namespace stafette {

// How a call ended; moving.py has the same numbers.
enum Outcome : int32_t {
  kDone = 0,
  kMore = 1,        // the budget is used up: call again
  kStopped = 2,     // the job's `stop` was set
  kEpochEnded = 3,  // the owner is another life, or closed
  kLeaseEnded = 4,
  kStale = 5,    // blocks were overwritten
  kOutside = 6,  // of a region, or of what the lease covers
  kFailed = 7,   // `detail` of the cursor is an errno
  kShort = 8,    // the file ended early
  kOther = 9,    // the process is not the one that we mean
};

enum Source : uint64_t { kMemory = 0, kFile = 1, kProcess = 2 };

// All of one call, in words of 8 bytes; moving.py packs the same.
struct Job {
  // What the owner promised, and where in its ledger the truth stands.
  const uint64_t* epoch_word;
  uint64_t epoch;
  const uint64_t* lease_word;
  uint64_t lease_id;
  const uint64_t* generations;  // of all blocks of the region, live
  uint64_t num_generations;
  const int64_t* blocks;    // those of the lease, ascending
  const uint64_t* granted;  // their generations when the lease began
  uint64_t num_blocks;
  uint64_t block_bytes;
  // Where the bytes are.
  uint64_t source;
  uint64_t from;  // an address, or a file's offset
  uint64_t from_bytes;
  int64_t handle;         // file descriptor or process id
  uint64_t mark_address;  // 16 bytes in the process by which it is known
  uint64_t mark[2];
  // Where they go.
  uint8_t* into;
  uint64_t into_bytes;
  volatile const int32_t* stop;

  bool stopped() const { return *stop != 0; }
};

struct Ranges {
  const uint64_t* into;  // offsets
  const uint64_t* from;
  const uint64_t* lengths;
  uint64_t count;
};

// How far a job has come. Zeros at its beginning.
struct Cursor {
  uint64_t range;
  uint64_t within;  // bytes of that range
  uint64_t moved;   // by this call
  uint64_t total;   // of the job
  uint64_t detail;

  void advance(const Ranges& ranges, uint64_t nbytes) {
    moved += nbytes;
    within += nbytes;
    while (range < ranges.count && within >= ranges.lengths[range])
      within -= ranges.lengths[range++];
  }
};

// At most so many bytes between two looks at `stop`: some ten microseconds.
constexpr uint64_t kStopEvery = 256 << 10;

// Each moves what fits in the budget, or ends earlier for a reason.
Outcome copy(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor);
Outcome read_file(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor);
Outcome read_process(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor);

// Checks, moves, checks again; `kMore`: call it again.
Outcome read(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor);

// Whether every range lies in its region and in the lease, and the owner's promise holds.
Outcome check_all(const Job& job, const Ranges& ranges, Cursor& cursor);
// Whether the lease lives.
Outcome check_lease(const Job& job);
// Whether the lease lives and no block of the ranges was overwritten.
Outcome check_unchanged(const Job& job, const Ranges& ranges);

}  // namespace stafette
