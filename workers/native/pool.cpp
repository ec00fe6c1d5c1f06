#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stafette {
namespace {

constexpr int kCountBits = 24;
constexpr std::uint64_t kCountMask = (std::uint64_t{1} << kCountBits) - 1;
constexpr int kSpins = 2'000;      // some 30 microseconds: a step's phases follow one another
constexpr int kYields = 400;       // some 200 microseconds: the pause between two steps

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

bool has_jobs(std::uint64_t ticket) {
  return (ticket & kCountMask) < ((ticket >> kCountBits) & kCountMask);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
  }
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_jobs(int jobs, Job job, void* context) {
  if (jobs <= 1 || workers_.empty()) {
    for (int i = 0; i < jobs; ++i) job(context, i, 0);
    return;
  }
  job_ = job;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  round_ = (round_ + 1) & 0xFFFF;
  const auto count = static_cast<std::uint64_t>(jobs);
  ticket_.store(round_ << (2 * kCountBits) | count << kCountBits);
  if (sleepers_.load() > 0) wake();
  while (claim(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != jobs; ++spins) {
    spins < kSpins ? pause() : std::this_thread::yield();
  }
}

// Takes one job and does it. False when none is left.
bool ThreadPool::claim(int thread) {
  if (!has_jobs(ticket_.load(std::memory_order_acquire))) return false;
  const std::uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
  if (!has_jobs(ticket)) return false;
  job_(context_, static_cast<int>(ticket & kCountMask), thread);
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::work(int thread) {
  while (!stop_.load(std::memory_order_relaxed)) {
    while (claim(thread)) {
    }
    const std::uint64_t seen = ticket_.load();
    if (!has_jobs(seen) && !await_ticket(seen)) sleep_until_changed(seen);
  }
}

bool ThreadPool::await_ticket(std::uint64_t seen) {
  for (int i = 0; i < kSpins + kYields; ++i) {
    if (ticket_.load(std::memory_order_relaxed) != seen) return true;
    i < kSpins ? pause() : std::this_thread::yield();
  }
  return false;
}

void ThreadPool::sleep_until_changed(std::uint64_t seen) {
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1);
  changed_.wait(lock, [&] { return stop_.load() || ticket_.load() != seen; });
  sleepers_.fetch_sub(1);
}

void ThreadPool::wake() {
  std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
}

}  // namespace stafette
