#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stafette {
namespace {

constexpr int kSpins = 2'000;  // some 30 microseconds: a step's phases follow one another
constexpr int kYields = 400;   // some 200 microseconds: the pause between two steps

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : begun_(new Begun[threads]) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_jobs(int jobs, const Work& work) {
  if (jobs <= 0) return;
  work_ = work;
  done_.store(0, std::memory_order_relaxed);
  round_ = (round_ + 1) & 0xFFFF;
  const std::uint64_t ticket = round_ << (2 * kCountBits) | static_cast<std::uint64_t>(jobs) << kCountBits;
  if (jobs == 1 || workers_.empty()) {
    for (int job = 0; job < jobs; ++job) work.call(*this, work.context, ticket + job, 0);
    return;
  }
  ticket_.store(ticket);
  if (sleepers_.load() > 0) wake();
  while (claim(0)) {
  }
  wait_for_others(jobs);
}

void ThreadPool::wait_for_others(int jobs) {
  for (int spins = 0; done_.load(std::memory_order_acquire) != jobs; ++spins) {
    if (work_.patience == kNever) {
      spins < kSpins ? pause() : std::this_thread::yield();
      continue;
    }
    pause();
    if (spins < work_.patience) continue;
    // What cannot be taken over is being committed, or not yet begun: its thread needs the core.
    if (!take_over()) std::this_thread::yield();
  }
}

// Does over one job that another thread has begun and not finished. False when there is none.
bool ThreadPool::take_over() {
  for (std::size_t i = 1; i <= workers_.size(); ++i) {
    std::uint64_t begun = begun_[i].ticket.load(std::memory_order_acquire);
    if (begun == kIdle || begun == kCommitting || begun == kTakenOver) continue;
    if ((begun - 1) >> (2 * kCountBits) != round_) continue;
    if (!begun_[i].ticket.compare_exchange_strong(begun, kTakenOver, std::memory_order_acq_rel)) continue;
    work_.call(*this, work_.context, begun - 1, 0);
    return true;
  }
  return false;
}

void ThreadPool::quiesce() const {
  for (std::size_t i = 1; i <= workers_.size(); ++i) {
    while (begun_[i].ticket.load(std::memory_order_acquire) != kIdle) std::this_thread::yield();
  }
}

// Takes one job and does it. False when none is left.
bool ThreadPool::claim(int thread) {
  const auto has_jobs = [](std::uint64_t ticket) {
    return (ticket & kCountMask) < ((ticket >> kCountBits) & kCountMask);
  };
  if (!has_jobs(ticket_.load(std::memory_order_acquire))) return false;
  const std::uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
  if (!has_jobs(ticket)) return false;
  work_.call(*this, work_.context, ticket, thread);
  return true;
}

void ThreadPool::work(int thread) {
  while (!stop_.load(std::memory_order_relaxed)) {
    const std::uint64_t seen = ticket_.load();
    while (claim(thread)) {
    }
    if (!await_ticket(seen)) sleep_until_changed(seen);
  }
}

bool ThreadPool::await_ticket(std::uint64_t seen) {
  const std::uint64_t round = seen >> kCountBits;
  for (int i = 0; i < kSpins + kYields; ++i) {
    if (ticket_.load(std::memory_order_relaxed) >> kCountBits != round) return true;
    i < kSpins ? pause() : std::this_thread::yield();
  }
  return false;
}

void ThreadPool::sleep_until_changed(std::uint64_t seen) {
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1);
  changed_.wait(lock, [&] { return stop_.load() || ticket_.load() >> kCountBits != seen >> kCountBits; });
  sleepers_.fetch_sub(1);
}

void ThreadPool::wake() {
  std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
}

}  // namespace stafette
