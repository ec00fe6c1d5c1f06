// A team of threads that shares out numbered jobs. It spins, then yields, then sleeps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace stafette {

// Jobs are claimed one by one, and the caller claims too: it waits only for jobs that another
// thread has begun, so a thread that lost its core holds up one job and not a share of the work.
class ThreadPool {
 public:
  using Job = void (*)(void* context, int job, int thread);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls `function(job, thread)` for each job in 0..jobs-1; returns when all are done.
  template <class Function>
  void run(int jobs, Function&& function) {
    using Plain = std::remove_reference_t<Function>;
    run_jobs(
        jobs,
        [](void* context, int job, int thread) { (*static_cast<Plain*>(context))(job, thread); },
        const_cast<void*>(static_cast<const void*>(&function)));
  }

  static constexpr int kMaxJobs = (1 << 24) - 64;

 private:
  void run_jobs(int jobs, Job job, void* context);
  void work(int thread);
  bool claim(int thread);
  bool await_ticket(std::uint64_t seen);
  void sleep_until_changed(std::uint64_t seen);
  void wake();

  // One word says it all: round (16 bits), number of jobs (24), next job (24). A claim that finds
  // next < jobs is valid for that round, and the round cannot end before the job is done.
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::uint64_t round_ = 0;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> workers_;
};

}  // namespace stafette
