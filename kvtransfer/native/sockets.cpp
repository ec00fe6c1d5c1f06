// Moves the bytes of jobs between sockets and scattered memory, without copies and without Python.
//
// What a socket carries is frames: a header, then as many bytes of one job as it says. The loops
// here go on from frame to frame as long as nothing else comes, so that a long job takes few turns
// with the interpreter's lock. Sockets are never waited for inside of a call on them: a thread that
// waits can always be woken.

#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" {

// A list of ranges of a memory, and where the next byte lies.
struct stafette_ranges {
  uint8_t* base;
  const uint64_t* offsets;
  const uint64_t* lengths;
  uint64_t count;
  uint64_t index;   // of the range that has the next byte
  uint64_t within;  // how many bytes of that range are done
  uint64_t left;    // bytes of all ranges that are not done
};

struct stafette_header {
  uint32_t kind;
  uint32_t num_bytes;  // that follow
  uint64_t job;
  uint64_t digest;
};

// The receiving side of a socket, between two calls.
struct stafette_incoming {
  int32_t fd;
  int32_t wake_fd;        // readable when its thread is wanted elsewhere
  uint32_t header_bytes;  // of the header, that have come
  uint32_t frame_left;    // bytes of the frame that are still to come
  int32_t ask_us;         // how long to ask for a header again and again before sleeping
  uint32_t unused;
  stafette_header header;
};

}  // extern "C"

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "headers are sent as they lie");

constexpr uint32_t kData = 0x53544601;  // as in tcp_frames.py
constexpr uint32_t kLast = 0x53544604;
constexpr int kMaxVectors = 1024;       // the kernel's limit of one call

// Why a loop has returned; an errno is returned as a negative number.
enum Outcome : int { kDone, kFrame, kPaused, kStopped, kWoken, kTimedOut, kClosed, kWhole };

using Ranges = stafette_ranges;

int64_t now_us() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000 + t.tv_nsec / 1000;
}

int64_t now_ms() { return now_us() / 1000; }

// Writes down where the next `most` bytes lie, as far as `room` vectors go; returns their number.
int point_at(const Ranges& ranges, uint64_t most, iovec* vectors, int room) {
  uint64_t index = ranges.index, within = ranges.within;
  int used = 0;
  while (used < room && most > 0 && index < ranges.count) {
    const uint64_t size = std::min(ranges.lengths[index] - within, most);
    vectors[used++] = {ranges.base + ranges.offsets[index] + within, size_t(size)};
    most -= size;
    ++index;
    within = 0;
  }
  return used;
}

void advance(Ranges& ranges, uint64_t num_bytes) {
  ranges.left -= num_bytes;
  while (num_bytes > 0) {
    const uint64_t size = std::min(ranges.lengths[ranges.index] - ranges.within, num_bytes);
    num_bytes -= size;
    ranges.within += size;
    if (ranges.within == ranges.lengths[ranges.index]) {
      ++ranges.index;
      ranges.within = 0;
    }
  }
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK; }

// Waits until the socket has something, or can take something when the caller wants to send.
int await_input(const stafette_incoming& in, bool wants_to_send, int timeout_ms) {
  pollfd waits[2] = {{in.fd, short(wants_to_send ? POLLIN | POLLOUT : POLLIN), 0},
                     {in.wake_fd, POLLIN, 0}};
  const int found = poll(waits, 2, timeout_ms);
  if (found < 0) return errno == EINTR ? kWoken : -errno;
  if (found == 0) return kTimedOut;
  if (waits[1].revents || (waits[0].revents & POLLOUT)) return kWoken;
  return kDone;
}

// What a call on a socket that gave nothing means; kDone: there may be something now.
int after_nothing(const stafette_incoming& in, ssize_t got, bool wants_to_send, int timeout_ms) {
  if (got == 0) return kClosed;
  if (errno == EINTR) return kDone;
  return would_block() ? await_input(in, wants_to_send, timeout_ms) : -errno;
}

ssize_t receive_body(const stafette_incoming& in, const Ranges& into) {
  iovec vectors[kMaxVectors];
  msghdr message = {};
  message.msg_iov = vectors;
  message.msg_iovlen = size_t(point_at(into, in.frame_left, vectors, kMaxVectors));
  return recvmsg(in.fd, &message, MSG_DONTWAIT);
}

ssize_t receive_header(stafette_incoming& in) {
  uint8_t* place = reinterpret_cast<uint8_t*>(&in.header);
  return recv(in.fd, place + in.header_bytes, sizeof in.header - in.header_bytes, MSG_DONTWAIT);
}

// Asks again and again for a while, but lets every other thread go first: what comes soon is there
// without the detour through the sleep of a processor.
ssize_t ask_for_header(stafette_incoming& in) {
  ssize_t got = receive_header(in);
  if (got >= 0 || in.ask_us <= 0) return got;
  const int64_t end_us = now_us() + in.ask_us;
  while (got < 0 && would_block() && now_us() < end_us) {
    sched_yield();
    got = receive_header(in);
  }
  return got;
}

// Begins to send a frame; returns what sendmsg does. `skip` bytes of the header are sent already.
ssize_t send_some(int fd, const stafette_header& header, size_t skip, const Ranges& from,
                  uint64_t body, bool more) {
  iovec vectors[kMaxVectors];
  int used = 0;
  uint8_t* place = const_cast<uint8_t*>(reinterpret_cast<const uint8_t*>(&header));
  if (skip < sizeof header) vectors[used++] = {place + skip, sizeof header - skip};
  used += point_at(from, body, vectors + used, kMaxVectors - used);
  msghdr message = {};
  message.msg_iov = vectors;
  message.msg_iovlen = size_t(used);
  return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0));
}

// Waits until the socket takes something, at most until then.
int await_room(int fd, int64_t deadline_ms) {
  const int64_t left_ms = deadline_ms - now_ms();
  if (left_ms <= 0) return kTimedOut;
  pollfd wait = {fd, POLLOUT, 0};
  const int found = poll(&wait, 1, int(left_ms));
  if (found < 0 && errno != EINTR) return -errno;
  return kDone;  // the next attempt shows what there is
}

int send_frame(int fd, uint64_t job, Ranges& from, uint32_t body, int timeout_ms) {
  const stafette_header header = {kData, body, job, 0};
  const bool last = body == from.left;  // what closes the job follows at once
  const int64_t deadline_ms = now_ms() + timeout_ms;
  size_t header_sent = 0;
  while (header_sent < sizeof header || body > 0) {
    const ssize_t sent = send_some(fd, header, header_sent, from, body, last);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (!would_block()) return -errno;
      const int waited = await_room(fd, deadline_ms);
      if (waited != kDone) return waited;
      continue;
    }
    const size_t of_header = std::min(size_t(sent), sizeof header - header_sent);
    header_sent += of_header;
    body -= uint32_t(size_t(sent) - of_header);
    advance(from, size_t(sent) - of_header);
  }
  return kDone;
}

bool has_input(int fd) {
  uint8_t byte;
  return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 || !would_block();
}

}  // namespace

extern "C" {

// Receives the bytes of one job, from frame to frame, until they are all there, something else comes
// or the time is over; with a slice of 0, one frame. With no `into`, waits for a header. A complete
// header that is not of this job stays in `in`: kFrame.
__attribute__((visibility("default"))) int stafette_receive_2(stafette_incoming* in,
                                                              stafette_ranges* into, uint64_t job,
                                                              const volatile int32_t* stop,
                                                              int wants_to_send, int timeout_ms,
                                                              int slice_ms) {
  const int64_t end_ms = now_ms() + slice_ms;
  for (;;) {
    while (in->frame_left > 0) {
      if (stop != nullptr && *stop) return kStopped;
      const ssize_t got = receive_body(*in, *into);
      if (got > 0) {
        in->frame_left -= uint32_t(got);
        advance(*into, uint64_t(got));
        if (slice_ms > 0 && now_ms() >= end_ms) return kPaused;
        continue;
      }
      const int outcome = after_nothing(*in, got, wants_to_send, timeout_ms);
      if (outcome != kDone) return outcome;
    }
    if (into != nullptr && (into->left == 0 || now_ms() >= end_ms)) return kPaused;
    while (in->header_bytes < sizeof in->header) {
      const ssize_t got = into == nullptr ? ask_for_header(*in) : receive_header(*in);
      if (got > 0) {
        in->header_bytes += uint32_t(got);
        continue;
      }
      const int outcome = after_nothing(*in, got, wants_to_send, timeout_ms);
      if (outcome != kDone) return outcome;
    }
    const stafette_header& header = in->header;
    if (into == nullptr || header.kind != kData || header.job != job || header.num_bytes == 0 ||
        header.num_bytes > into->left)
      return kFrame;
    in->frame_left = header.num_bytes;
    in->header_bytes = 0;
  }
}

// Waits for the answer to one small job that was asked for, and receives it if it is a single frame:
// kWhole. Whatever else comes is left as it is. The frame's header stays in `in`, also when its bytes
// are not all there yet.
__attribute__((visibility("default"))) int stafette_receive_answer_1(
    stafette_incoming* in, stafette_ranges* into, uint64_t job, const volatile int32_t* stop,
    int wants_to_send, int timeout_ms) {
  while (in->header_bytes < sizeof in->header) {
    const ssize_t got = ask_for_header(*in);
    if (got > 0) {
      in->header_bytes += uint32_t(got);
      continue;
    }
    const int outcome = after_nothing(*in, got, wants_to_send, timeout_ms);
    if (outcome != kDone) return outcome;
  }
  const stafette_header& header = in->header;
  if (header.kind != kLast || header.job != job || header.num_bytes != into->left) return kFrame;
  in->frame_left = header.num_bytes;
  while (in->frame_left > 0) {
    if (*stop) return kStopped;
    const ssize_t got = receive_body(*in, *into);
    if (got > 0) {
      in->frame_left -= uint32_t(got);
      advance(*into, uint64_t(got));
      continue;
    }
    const int outcome = after_nothing(*in, got, wants_to_send, timeout_ms);
    if (outcome != kDone) return outcome;
  }
  return kWhole;
}

// Copies the next bytes, one range behind the other, and counts them as done.
__attribute__((visibility("default"))) void stafette_gather_1(stafette_ranges* from, uint8_t* into,
                                                              uint64_t num_bytes) {
  while (num_bytes > 0 && from->index < from->count) {
    const uint64_t size = std::min(from->lengths[from->index] - from->within, num_bytes);
    memcpy(into, from->base + from->offsets[from->index] + from->within, size);
    advance(*from, size);
    if (size == 0) ++from->index;
    into += size;
    num_bytes -= size;
  }
}

// Sends a job's next bytes in frames, until all are sent, the peer says something, or the time is
// over. A frame that is not taken in time ends it: kTimedOut.
__attribute__((visibility("default"))) int stafette_send_1(int fd, stafette_ranges* from,
                                                           uint64_t job, uint32_t frame_bytes,
                                                           int timeout_ms, int slice_ms) {
  const int64_t end_ms = now_ms() + slice_ms;
  while (from->left > 0) {
    const uint32_t body = uint32_t(std::min<uint64_t>(frame_bytes, from->left));
    const int outcome = send_frame(fd, job, *from, body, timeout_ms);
    if (outcome != kDone) return outcome;
    if (from->left > 0 && (now_ms() >= end_ms || has_input(fd))) return kPaused;
  }
  return kDone;
}

}  // extern "C"
