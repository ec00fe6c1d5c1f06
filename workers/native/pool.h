// A team of threads that shares out numbered jobs. It spins, then yields, then sleeps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace stafette {

// Jobs are claimed one by one, and the caller claims too: it waits only for jobs that another
// thread has begun. A neighbour on the machine may take a thread's core for milliseconds in the
// middle of a job; so a job can be given in three parts, and then the caller, once it has waited
// `patience` turns, does a begun job over and goes on without that thread.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls `function(job, thread)` for each job in 0..jobs-1; returns when all are done.
  template <class Function>
  void run(int jobs, Function&& function) {
    using Plain = std::remove_reference_t<Function>;
    run_jobs(jobs, {plain_job<Plain>, &function, kNever});
  }

  // For each job: State s = prepare(job, thread), compute(s, thread), commit(s, thread).
  // `compute` may run twice for a job, the second time while the first goes on or lies still, even
  // beyond this call: it must be a plain function that reads nothing but its state and memory that
  // outlives the call, and writes to its thread's own memory. `commit` runs once, before the return.
  template <class State, class Prepare, class Commit>
  void run(int jobs, int patience, Prepare&& prepare, void (*compute)(const State&, int), Commit&& commit) {
    static_assert(std::is_trivially_copyable_v<State>);
    ThreePart<State, Prepare, Commit> parts{prepare, compute, commit};
    run_jobs(jobs, {three_part_job<State, Prepare, Commit>, &parts, patience});
  }

  // Returns when no thread is still computing anything. Before memory is freed or moved.
  void quiesce() const;

  static constexpr int kMaxJobs = (1 << 24) - 64;

 private:
  static constexpr int kNever = -1;

  struct Work {
    void (*call)(ThreadPool& pool, void* context, std::uint64_t ticket, int thread);
    void* context;
    int patience;  // turns of a spin; kNever: jobs cannot be done over
  };

  template <class State, class Prepare, class Commit>
  struct ThreePart {
    Prepare& prepare;
    void (*compute)(const State&, int);
    Commit& commit;
  };

  template <class Plain>
  static void plain_job(ThreadPool& pool, void* context, std::uint64_t ticket, int thread) {
    (*static_cast<Plain*>(context))(job_of(ticket), thread);
    pool.done_.fetch_add(1, std::memory_order_release);
  }

  template <class State, class Prepare, class Commit>
  static void three_part_job(ThreadPool& pool, void* context, std::uint64_t ticket, int thread) {
    const auto parts = *static_cast<ThreePart<State, Prepare, Commit>*>(context);
    const State state = parts.prepare(job_of(ticket), thread);
    // From here to the exchange, the caller may take the job over and leave; nothing of its stack
    // may be touched but through what is copied above.
    std::atomic<std::uint64_t>& mine = pool.begun_[thread].ticket;
    mine.store(ticket + 1, std::memory_order_release);
    parts.compute(state, thread);
    std::uint64_t expected = ticket + 1;
    if (!mine.compare_exchange_strong(expected, kCommitting, std::memory_order_acq_rel)) {
      mine.store(kIdle, std::memory_order_release);
      return;
    }
    parts.commit(state, thread);
    mine.store(kIdle, std::memory_order_release);
    pool.done_.fetch_add(1, std::memory_order_release);
  }

  static int job_of(std::uint64_t ticket) { return static_cast<int>(ticket & kCountMask); }

  void run_jobs(int jobs, const Work& work);
  void wait_for_others(int jobs);
  bool take_over();
  void work(int thread);
  bool claim(int thread);
  bool await_ticket(std::uint64_t seen);
  void sleep_until_changed(std::uint64_t seen);
  void wake();

  static constexpr int kCountBits = 24;
  static constexpr std::uint64_t kCountMask = (std::uint64_t{1} << kCountBits) - 1;

  // What a thread is computing: its ticket + 1, or one of these.
  static constexpr std::uint64_t kIdle = 0;
  static constexpr std::uint64_t kCommitting = ~std::uint64_t{0};
  static constexpr std::uint64_t kTakenOver = kCommitting - 1;
  struct alignas(64) Begun {
    std::atomic<std::uint64_t> ticket{kIdle};
  };

  // One word says it all: round (16 bits), number of jobs (24), next job (24). A claim that finds
  // next < jobs is valid for that round, and the round cannot end before the job is done.
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::unique_ptr<Begun[]> begun_;  // [threads]
  Work work_{};
  std::uint64_t round_ = 0;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> workers_;
};

// How many turns to wait for a job that should take this long.
inline int patience_for(double job_ns) {
  constexpr double kLeast = 500, kTurnsPerNs = 0.2;  // a turn is some 15 ns: three times the job
  return static_cast<int>(kLeast + job_ns * kTurnsPerNs);
}

}  // namespace stafette
