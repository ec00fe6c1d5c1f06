// The one door to the reader: check, move, check again.

#include "moving.h"

namespace stafette {
namespace {

Outcome move(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor) {
  switch (job.source) {
    case kFile:
      return read_file(job, ranges, budget, cursor);
    case kProcess:
      return read_process(job, ranges, budget, cursor);
    default:
      return copy(job, ranges, budget, cursor);
  }
}

}  // namespace

Outcome read(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor) {
  cursor.moved = 0;
  if (job.stopped()) return kStopped;
  const bool first = cursor.range == 0 && cursor.within == 0;
  const Outcome before = first ? check_all(job, ranges, cursor) : check_lease(job);
  if (before != kDone) return before;
  const Outcome moved = move(job, ranges, budget, cursor);
  return moved == kDone ? check_unchanged(job, ranges) : moved;
}

}  // namespace stafette

// Moves up to about `budget` bytes, from where the cursor stands; returns an Outcome. The caller
// repeats it while that is kMore. Only kDone says that the bytes are what the lease promised. Its
// name has a number, which is another one when Job or Cursor are: who has an older library finds no
// reader in it.
extern "C" __attribute__((visibility("default"))) int32_t stafette_read_1(
    const stafette::Job* job, const uint64_t* into, const uint64_t* from, const uint64_t* lengths,
    uint64_t count, uint64_t budget, stafette::Cursor* cursor) {
  return stafette::read(*job, {into, from, lengths, count}, budget, *cursor);
}

// Moves one small range in a single call. Anything but kDone: nothing can be said of its bytes.
extern "C" __attribute__((visibility("default"))) int32_t stafette_read_one_1(
    const stafette::Job* job, uint64_t into, uint64_t from, uint64_t length) {
  stafette::Cursor cursor = {};
  return stafette::read(*job, {&into, &from, &length, 1}, length, cursor);
}
