// Reads what is not mapped here: another process's private memory, and files.

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "moving.h"

namespace stafette {
namespace {

constexpr uint64_t kMaxVectors = 1024;       // IOV_MAX of Linux
constexpr uint64_t kBatchBytes = 4 << 20;    // of one system call, which cannot be stopped
constexpr uint64_t kMaxFileRead = 1 << 20;

struct Batch {
  iovec into[kMaxVectors];
  iovec from[kMaxVectors];
  uint64_t count = 0;
};

// Takes in what follows the cursor, as much as one system call shall move.
void fill(Batch& batch, const Job& job, const Ranges& ranges, Cursor place) {
  uint64_t nbytes = 0;
  batch.count = 0;
  while (place.range < ranges.count && batch.count < kMaxVectors && nbytes < kBatchBytes) {
    const uint64_t i = place.range;
    const uint64_t length = std::min(ranges.lengths[i] - place.within, kBatchBytes - nbytes);
    void* const theirs = reinterpret_cast<void*>(job.from + ranges.from[i] + place.within);
    batch.into[batch.count] = {job.into + ranges.into[i] + place.within, length};
    batch.from[batch.count] = {theirs, length};
    ++batch.count;
    nbytes += length;
    place.advance(ranges, length);
  }
}

Outcome failed(Cursor& cursor) {
  cursor.detail = uint64_t(errno);
  return kFailed;
}

// The mark is ours to find: a process that took over the number, or another program in the same
// process, has something else there. A number that was given away never comes back to the owner, so
// one look after the copy is enough.
Outcome check_mark(const Job& job, Cursor& cursor) {
  uint64_t found[2] = {};
  const iovec ours = {found, sizeof found};
  const iovec theirs = {reinterpret_cast<void*>(job.mark_address), sizeof found};
  const ssize_t nbytes = process_vm_readv(pid_t(job.handle), &ours, 1, &theirs, 1, 0);
  if (nbytes < 0 && errno != EFAULT) return failed(cursor);
  const bool same = nbytes == sizeof found && found[0] == job.mark[0] && found[1] == job.mark[1];
  return same ? kDone : kOther;
}

}  // namespace

Outcome read_process(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor) {
  Batch batch;
  while (cursor.range < ranges.count) {
    if (job.stopped()) return kStopped;
    if (cursor.moved >= budget) return kMore;
    fill(batch, job, ranges, cursor);
    const ssize_t nbytes = process_vm_readv(pid_t(job.handle), batch.into, batch.count, batch.from,
                                            batch.count, 0);
    if (nbytes <= 0) return failed(cursor);
    cursor.advance(ranges, uint64_t(nbytes));
  }
  return check_mark(job, cursor);
}

Outcome read_file(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor) {
  while (cursor.range < ranges.count) {
    if (job.stopped()) return kStopped;
    if (cursor.moved >= budget) return kMore;
    const uint64_t i = cursor.range;
    const uint64_t length = std::min(ranges.lengths[i] - cursor.within, kMaxFileRead);
    const uint64_t place = job.from + ranges.from[i] + cursor.within;
    uint8_t* const into = job.into + ranges.into[i] + cursor.within;
    const ssize_t nbytes = pread(int(job.handle), into, length, off_t(place));
    if (nbytes < 0 && errno == EINTR) continue;
    if (nbytes < 0) return failed(cursor);
    if (nbytes == 0) return kShort;
    cursor.advance(ranges, uint64_t(nbytes));
  }
  return kDone;
}

}  // namespace stafette
