// The owner's desk for small requests on one connection: each is read, checked, copied and answered
// in one go, without Python. So an answer does not wait until a busy thread of the owner's process
// lets go of the interpreter's lock, which takes milliseconds.
//
// What is asked is checked as everywhere: the ranges against the region and the lease, the lease and
// the epoch against the owner's own ledger, the blocks' generations before the copy and after it.
// Only then does a byte leave. Whatever is not plainly good is left to Python, which knows all the
// rules, and all the errors.

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "moving.h"

namespace stafette {
namespace {

constexpr uint32_t kLast = 0x53544604;  // as in tcp_frames.py
constexpr uint64_t kRead = 1;
constexpr size_t kLengthBytes = 4;
constexpr size_t kMaxRanges = 64;
constexpr size_t kRoom = 4 << 10;  // for messages; what is longer is not small
constexpr uint64_t kNumberEnd = uint64_t(1) << 63;

// How a message ended, and why the desk returns; answering.py has the same numbers. An errno is
// returned as a negative number.
enum Reason : int {
  kAnswered = 0,
  kLeft = 1,     // Python has to look at what has come
  kEnded = 2,    // the peer has closed the connection
  kHalf = 3,     // the rest of a message did not come
  kStalled = 4,  // the peer takes no bytes
};

struct Header {
  uint32_t kind;
  uint32_t num_bytes;
  uint64_t number;
  uint64_t digest;
};

int64_t now_ms() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000 + t.tv_nsec / 1000000;
}

// Reads the msgpack that our readers write; `good` turns false at anything else.
class Unpacker {
 public:
  Unpacker(const uint8_t* begin, size_t size) : at_(begin), end_(begin + size) {}

  bool good() const { return good_; }
  bool at_end() const { return at_ == end_; }

  uint8_t byte() {
    const uint8_t* place = take(1);
    return place ? *place : 0;
  }

  uint64_t number() {
    const uint8_t kind = byte();
    if (kind < 0x80) return kind;
    if (kind < 0xcc || kind > 0xcf) return fail();
    return big_endian(size_t(1) << (kind - 0xcc));
  }

  bool flag() {
    const uint8_t kind = byte();
    if (kind != 0xc2 && kind != 0xc3) fail();
    return kind == 0xc3;
  }

  void list_of(uint8_t count) {
    if (byte() != (0x90 | count)) fail();
  }

  std::string_view text() {
    const uint8_t kind = byte();
    if ((kind & 0xe0) == 0xa0) return run(kind & 0x1f);
    return kind == 0xd9 ? run(byte()) : run(fail());
  }

  std::string_view octets() {
    const uint8_t kind = byte();
    return kind == 0xc4 || kind == 0xc5 ? run(big_endian(kind - 0xc3)) : run(fail());
  }

 private:
  uint64_t fail() {
    good_ = false;
    return 0;
  }

  const uint8_t* take(size_t size) {
    if (size_t(end_ - at_) < size) good_ = false;
    if (!good_) return nullptr;
    at_ += size;
    return at_ - size;
  }

  uint64_t big_endian(size_t size) {
    const uint8_t* place = take(size);
    uint64_t value = 0;
    for (size_t i = 0; place && i < size; ++i) value = value << 8 | place[i];
    return value;
  }

  std::string_view run(uint64_t size) {
    const uint8_t* place = take(size);
    return place ? std::string_view(reinterpret_cast<const char*>(place), size)
                 : std::string_view();
  }

  const uint8_t* at_;
  const uint8_t* const end_;
  bool good_ = true;
};

struct Request {
  uint64_t number, lease_id, epoch, generation, count;
  std::string_view region;
  uint64_t offsets[kMaxRanges], lengths[kMaxRanges];
};

// Reads a request that is small, and not to be verified; false: it is something else.
bool read_request(const uint8_t* body, size_t size, Request& request) {
  Unpacker from(body, size);
  from.list_of(7);
  const uint64_t kind = from.number();
  request.number = from.number();
  request.lease_id = from.number();
  request.epoch = from.number();
  request.generation = from.number();
  from.list_of(3);
  request.region = from.text();
  const std::string_view offsets = from.octets(), lengths = from.octets();
  const bool verify = from.flag();
  request.count = offsets.size() / 8;
  if (!from.good() || !from.at_end() || kind != kRead || verify) return false;
  if (request.number >= kNumberEnd || offsets.size() != lengths.size()) return false;
  if (offsets.size() % 8 || !request.count || request.count > kMaxRanges) return false;
  memcpy(request.offsets, offsets.data(), offsets.size());
  memcpy(request.lengths, lengths.data(), lengths.size());
  return true;
}

// A lease that is answered for here, as long as its owner does not end it.
struct Promise {
  Job job;
  uint64_t generation;  // of the region
  std::string region;
};

}  // namespace
}  // namespace stafette

struct stafette_desk {
  stafette_desk(uint64_t max_bytes, uint64_t* counters)
      : max_bytes(max_bytes), counters(counters), answer(new uint8_t[max_bytes]) {}

  const uint64_t max_bytes;  // of an answer
  uint64_t* const counters;  // requests and bytes sent, which all desks of a transport share
  std::mutex lock;  // of the promises; held while one is used
  std::vector<stafette::Promise> promises;
  std::unique_ptr<uint8_t[]> answer;
  uint8_t message[stafette::kRoom];
  size_t size = 0;  // of what has come
};

namespace stafette {
namespace {

using Desk = stafette_desk;

const volatile int32_t never = 0;

// Copies what is asked for into the desk's own memory; returns its size, 0 when Python has to look.
uint64_t fetch(Desk& desk, const Request& request) {
  uint64_t into[kMaxRanges], total = 0;
  for (uint64_t i = 0; i < request.count; ++i) {
    if (request.lengths[i] > desk.max_bytes - total) return 0;
    into[i] = total;
    total += request.lengths[i];
  }
  const std::lock_guard<std::mutex> guard(desk.lock);
  for (const Promise& promise : desk.promises) {
    if (promise.job.lease_id != request.lease_id) continue;
    if (promise.job.epoch != request.epoch || promise.generation != request.generation) return 0;
    if (promise.region != request.region) return 0;
    Job job = promise.job;
    job.into = desk.answer.get();
    job.into_bytes = desk.max_bytes;
    job.stop = &never;
    Cursor cursor = {};
    const Ranges ranges = {into, request.offsets, request.lengths, request.count};
    return read(job, ranges, desk.max_bytes + 1, cursor) == kDone ? total : 0;
  }
  return 0;
}

// Sends all of it, waiting for room until the time is over.
int send_all(int fd, iovec* parts, size_t count, int stall_ms) {
  const int64_t deadline_ms = now_ms() + stall_ms;
  while (count) {
    msghdr message = {};
    message.msg_iov = parts;
    message.msg_iovlen = count;
    const ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      size_t left = size_t(sent);
      for (; count && left >= parts->iov_len; ++parts, --count) left -= parts->iov_len;
      if (count) *parts = {static_cast<uint8_t*>(parts->iov_base) + left, parts->iov_len - left};
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return -errno;
    const int64_t left_ms = deadline_ms - now_ms();
    pollfd wait = {fd, POLLOUT, 0};
    if (left_ms <= 0 || poll(&wait, 1, int(left_ms)) == 0) return kStalled;
  }
  return kAnswered;
}

// Answers a message, if that can be done here.
int answer(Desk& desk, int fd, const uint8_t* body, size_t size, int stall_ms) {
  Request request;
  if (!read_request(body, size, request)) return kLeft;
  const uint64_t total = fetch(desk, request);
  if (!total) return kLeft;
  __atomic_fetch_add(&desk.counters[0], 1, __ATOMIC_RELAXED);
  Header header = {kLast, uint32_t(total), request.number, 0};
  iovec parts[2] = {{&header, sizeof header}, {desk.answer.get(), total}};
  const int reason = send_all(fd, parts, 2, stall_ms);
  if (reason == kAnswered) __atomic_fetch_add(&desk.counters[1], total, __ATOMIC_RELAXED);
  return reason;
}

// Answers the messages that are there in full; kAnswered: more has to come.
int answer_all(Desk& desk, int fd, int stall_ms) {
  size_t done = 0;
  int reason = kAnswered;
  while (reason == kAnswered && desk.size - done >= kLengthBytes) {
    const uint8_t* const frame = desk.message + done;
    const size_t body = size_t(frame[0]) << 24 | frame[1] << 16 | frame[2] << 8 | frame[3];
    if (body > kRoom - kLengthBytes) reason = kLeft;
    if (reason == kLeft || desk.size - done - kLengthBytes < body) break;
    reason = answer(desk, fd, frame + kLengthBytes, body, stall_ms);
    if (reason != kLeft) done += kLengthBytes + body;
  }
  desk.size -= done;
  memmove(desk.message, desk.message + done, desk.size);
  return reason;
}

// Waits until something has come; kAnswered: it is there.
int receive(Desk& desk, int fd, int stall_ms) {
  for (;;) {
    const ssize_t got = recv(fd, desk.message + desk.size, kRoom - desk.size, MSG_DONTWAIT);
    if (got == 0) return kEnded;
    if (got > 0) {
      desk.size += size_t(got);
      return kAnswered;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return -errno;
    pollfd wait = {fd, POLLIN, 0};
    if (poll(&wait, 1, desk.size ? stall_ms : -1) == 0) return kHalf;
  }
}

}  // namespace
}  // namespace stafette

extern "C" {

#define STAFETTE_SEEN __attribute__((visibility("default")))

// `counters` are two words, which outlive the desk. Null where there is no memory.
STAFETTE_SEEN stafette_desk* stafette_desk_open_1(uint64_t max_bytes, uint64_t* counters) {
  try {
    return new stafette_desk(max_bytes, counters);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

STAFETTE_SEEN void stafette_desk_close_1(stafette_desk* desk) { delete desk; }

// Lets the desk answer for a lease; what the job points to stays until it is dropped.
STAFETTE_SEEN int stafette_desk_promise_1(stafette_desk* desk, const stafette::Job* job,
                                          uint64_t generation, const char* region,
                                          uint64_t region_bytes) {
  try {
    const std::lock_guard<std::mutex> guard(desk->lock);
    desk->promises.push_back({*job, generation, std::string(region, region_bytes)});
    return 1;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

// When it returns, nothing of that lease is read any more.
STAFETTE_SEEN void stafette_desk_drop_1(stafette_desk* desk, uint64_t lease_id) {
  const std::lock_guard<std::mutex> guard(desk->lock);
  auto& all = desk->promises;
  const auto of_it = [=](const stafette::Promise& each) { return each.job.lease_id == lease_id; };
  all.erase(std::remove_if(all.begin(), all.end(), of_it), all.end());
}

// Answers what comes on a socket until something comes that it cannot answer, or nothing any more.
STAFETTE_SEEN int stafette_desk_serve_1(stafette_desk* desk, int fd, int stall_ms) {
  for (;;) {
    const int answered = stafette::answer_all(*desk, fd, stall_ms);
    if (answered != stafette::kAnswered) return answered;
    const int received = stafette::receive(*desk, fd, stall_ms);
    if (received != stafette::kAnswered) return received;
  }
}

// Gives away what has come and was not answered; returns its size.
STAFETTE_SEEN uint64_t stafette_desk_take_1(stafette_desk* desk, uint8_t* into) {
  const size_t size = desk->size;
  memcpy(into, desk->message, size);
  desk->size = 0;
  return size;
}

}  // extern "C"
