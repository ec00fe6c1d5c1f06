// Copies out of memory that is mapped here.

#include <algorithm>
#include <atomic>
#include <cstring>

#include "moving.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stafette {
namespace {

// From here on a job's bytes go past the caches: they would push out more than a reader finds there
// afterwards. Measured with a 32 MiB cache: a copy and one reading of it are as quick either way
// at 16 MiB, quicker past the caches above it, slower below.
constexpr uint64_t kStreamFrom = 16 << 20;

// The processor foresees where a range goes on, not where the next one begins.
constexpr uint64_t kLine = 64;
constexpr uint64_t kAhead = 1 << 10;
constexpr uint64_t kStreamAhead = 16 << 10;

struct Piece {
  uint8_t* into;
  const uint8_t* from;
  uint64_t nbytes;
  const uint8_t* next;  // what is copied afterwards
  uint64_t next_bytes;
};

void copy_cached(const Piece& piece) {
  const uint64_t ahead = std::min(piece.next_bytes, kAhead);
  for (uint64_t i = 0; i < ahead; i += kLine) __builtin_prefetch(piece.next + i);
  memcpy(piece.into, piece.from, piece.nbytes);
}

#if defined(__x86_64__)

bool can_stream() { return __builtin_cpu_supports("avx2"); }

// Stores past the caches, while the end of it prefetches the next piece line by line.
__attribute__((target("avx2"))) void copy_streaming(const Piece& piece) {
  constexpr uint64_t kStep = 2 * kLine;
  const uint64_t head = std::min(-uint64_t(piece.into) % kLine, piece.nbytes);
  memcpy(piece.into, piece.from, head);
  uint8_t* into = piece.into + head;
  const uint8_t* from = piece.from + head;
  const uint8_t* next = piece.next;
  uint64_t left = piece.nbytes - head;
  const uint64_t ahead = std::min(piece.next_bytes, kStreamAhead);
  for (; left >= kStep; left -= kStep, into += kStep, from += kStep) {
    if (left <= ahead) {
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(next + kLine), _MM_HINT_T0);
      next += kStep;
    }
    const __m256i* source = reinterpret_cast<const __m256i*>(from);
    __m256i* target = reinterpret_cast<__m256i*>(into);
    const __m256i a = _mm256_loadu_si256(source), b = _mm256_loadu_si256(source + 1);
    const __m256i c = _mm256_loadu_si256(source + 2), d = _mm256_loadu_si256(source + 3);
    _mm256_stream_si256(target, a);
    _mm256_stream_si256(target + 1, b);
    _mm256_stream_si256(target + 2, c);
    _mm256_stream_si256(target + 3, d);
  }
  memcpy(into, from, left);
}

// Such stores are done before anything that follows.
void finish_streaming() { _mm_sfence(); }

#else

bool can_stream() { return false; }
void copy_streaming(const Piece& piece) { copy_cached(piece); }
void finish_streaming() {}

#endif

// Returns what lies at the cursor, and after it.
Piece piece_at(const Job& job, const Ranges& ranges, const Cursor& cursor) {
  const uint64_t i = cursor.range;
  const uint8_t* const memory = reinterpret_cast<const uint8_t*>(job.from);
  const uint64_t left = ranges.lengths[i] - cursor.within;
  const uint64_t nbytes = std::min(left, kStopEvery);
  const uint8_t* const from = memory + ranges.from[i] + cursor.within;
  uint8_t* const into = job.into + ranges.into[i] + cursor.within;
  if (nbytes < left) return {into, from, nbytes, from + nbytes, left - nbytes};
  if (i + 1 == ranges.count) return {into, from, nbytes, from, 0};
  return {into, from, nbytes, memory + ranges.from[i + 1], ranges.lengths[i + 1]};
}

template <typename Copy>
Outcome copy_pieces(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor,
                    Copy copy_piece) {
  uint64_t next_look = kStopEvery;
  while (cursor.range < ranges.count) {
    if (cursor.moved >= next_look) {
      if (job.stopped()) return kStopped;
      if (cursor.moved >= budget) return kMore;
      next_look = cursor.moved + kStopEvery;
    }
    const Piece piece = piece_at(job, ranges, cursor);
    copy_piece(piece);
    cursor.advance(ranges, piece.nbytes);
  }
  return kDone;
}

}  // namespace

Outcome copy(const Job& job, const Ranges& ranges, uint64_t budget, Cursor& cursor) {
  if (cursor.total < kStreamFrom || !can_stream())
    return copy_pieces(job, ranges, budget, cursor, copy_cached);
  // Whoever reads our region finds its own generations counted up before the first new byte.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const Outcome outcome = copy_pieces(job, ranges, budget, cursor, copy_streaming);
  finish_streaming();
  return outcome;
}

}  // namespace stafette
