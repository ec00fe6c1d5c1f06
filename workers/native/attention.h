// Runs a step's planned attention over one layer of the pool, on the thread pool.
#pragma once

#include <atomic>
#include <memory>

#include "buffer.h"
#include "kernels.h"
#include "plan.h"
#include "pool.h"

namespace stafette {

// One layer of the pool, in bytes.
struct KvLayer {
  std::uint8_t* base;
  std::int64_t block_stride, value_stride, head_stride;
  int block_shift;
  Element element;

  KvHead head(int index) const {
    std::uint8_t* const keys = base + index * head_stride;
    return {keys, keys + value_stride, block_stride, block_shift, element};
  }
};

// Queries and outputs: [tokens][heads * head_dim].
struct AttendRowsView {
  const void* queries;
  void* out;
  Element element;
  std::int64_t query_stride, out_stride;
};

class Attention {
 public:
  Attention(ThreadPool& pool, const Kernels& kernels, const AttendShape& shape, float scale);

  // Block tables are copied: a thread that is left behind reads them after the call.
  void plan(std::vector<SequenceView> sequences, int block_size);
  void run(const AttendRowsView& rows, const KvLayer& kv);

 private:
  AttendTask task(const AttendPiece& piece, int kv_head, const AttendRowsView& rows, const KvLayer& kv) const;
  // A job on its way: its task writes to the thread's own memory until it is committed.
  struct Begun {
    AttendTask task;
    const Kernels* kernels;
    void* scratch;
  };
  struct Job {
    Begun begun;
    int job;
  };

  AttendAhead ahead(int job, const KvLayer& kv) const;
  Begun begin(int job, int thread, const AttendRowsView& rows, const KvLayer& kv) const;
  float* partials_of(const FoldedTask& whole, int kv_head) const;
  void commit(int job, const Begun& begun, const AttendRowsView& rows, const KvLayer& kv);
  void fold_when_last(const AttendPiece& piece, int kv_head, const AttendRowsView& rows, const KvLayer& kv);

  ThreadPool& pool_;
  const Kernels& kernels_;
  AttendShape shape_;
  float scale_;
  AttendPlan plan_;
  Buffer scratch_, results_, partials_, tables_;
  std::size_t scratch_bytes_, result_bytes_ = 0;  // of one thread
  std::vector<std::atomic<int>> left_;  // parts of each folded task and KV head still to come
};

}  // namespace stafette
