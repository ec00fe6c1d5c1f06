#include "attention.h"

#include <algorithm>

namespace stafette {

Attention::Attention(ThreadPool& pool, const Kernels& kernels, const AttendShape& shape, float scale)
    : pool_(pool), kernels_(kernels), shape_(shape), scale_(scale) {
  const int rows = std::max(kAttendRows, shape.group());
  scratch_bytes_ = (kernels.attend_scratch(rows, shape.head_dim) + 4095) / 4096 * 4096;
  scratch_ = Buffer(scratch_bytes_ * pool.threads());
}

void Attention::plan(const std::vector<SequenceView>& sequences) {
  plan_.make(shape_, sequences, pool_.threads());
  partials_.reserve(plan_.partial_floats() * sizeof(float));
  const std::size_t counters = plan_.folded().size() * shape_.num_kv_heads;
  if (left_.size() < counters) left_ = std::vector<std::atomic<int>>(counters);
}

void Attention::run(const AttendRowsView& rows, const KvLayer& kv) {
  const int heads = shape_.num_kv_heads;
  for (std::size_t i = 0; i < plan_.folded().size() * heads; ++i) {
    left_[i].store(plan_.folded()[i / heads].parts, std::memory_order_relaxed);
  }
  const auto jobs = static_cast<int>(plan_.pieces().size()) * heads;
  pool_.run(jobs, [&](int job, int thread) { run_job(job, thread, rows, kv); });
}

AttendTask Attention::task(const AttendPiece& piece, int kv_head, const AttendRowsView& rows,
                           const KvLayer& kv) const {
  const std::int64_t column = std::int64_t{kv_head} * shape_.group() * shape_.head_dim;
  const int bytes = element_bytes(rows.element);
  AttendTask task{};
  task.queries = static_cast<const std::uint8_t*>(rows.queries) + (piece.token * rows.query_stride + column) * bytes;
  task.query_element = task.out_element = rows.element;
  task.query_stride = rows.query_stride;
  task.tokens = piece.tokens;
  task.group = shape_.group();
  task.head_dim = shape_.head_dim;
  task.position = piece.position;
  task.blocks = piece.blocks;
  task.first_split = piece.first_split;
  task.end_split = piece.end_split;
  task.scale = scale_;
  task.window = shape_.window;
  task.kv = kv.head(kv_head);
  task.out = static_cast<std::uint8_t*>(rows.out) + (piece.token * rows.out_stride + column) * bytes;
  task.out_stride = rows.out_stride;
  return task;
}

// The start of the context of the job that the thread which runs `job` is likely to get next.
AttendAhead Attention::ahead(int job, const KvLayer& kv) const {
  const int heads = shape_.num_kv_heads, next = job + pool_.threads();
  if (next >= static_cast<int>(plan_.pieces().size()) * heads) return {};
  const AttendPiece& piece = plan_.pieces()[next / heads];
  const int first = piece.first_split * kSplit;
  const int end = std::min({first + 2 * kSplit, piece.end_split * kSplit, piece.position + piece.tokens});
  return {piece.blocks, first, end, kv.head(next % heads)};
}

void Attention::run_job(int job, int thread, const AttendRowsView& rows, const KvLayer& kv) {
  const int kv_head = job % shape_.num_kv_heads;
  const AttendPiece& piece = plan_.pieces()[job / shape_.num_kv_heads];
  void* const scratch = scratch_.as<std::uint8_t>() + thread * scratch_bytes_;
  AttendTask one = task(piece, kv_head, rows, kv);
  one.next = ahead(job, kv);
  one.cold = job < pool_.threads();
  if (piece.whole < 0) return kernels_.attend(one, scratch);
  const FoldedTask& whole = plan_.folded()[piece.whole];
  one.partials = partials_.as<float>() + whole.partials_at + kv_head * whole.head_floats;
  kernels_.attend(one, scratch);
  if (left_[piece.whole * shape_.num_kv_heads + kv_head].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  one.first_split = whole.piece.first_split;
  kernels_.fold(one, whole.piece.end_split);
}

}  // namespace stafette
