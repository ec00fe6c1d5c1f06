#include "attention.h"

#include <algorithm>
#include <cstring>

namespace stafette {

Attention::Attention(ThreadPool& pool, const Kernels& kernels, const AttendShape& shape, float scale)
    : pool_(pool), kernels_(kernels), shape_(shape), scale_(scale) {
  const int rows = std::max(kAttendRows, shape.group());
  scratch_bytes_ = (kernels.attend_scratch(rows, shape.head_dim) + 4095) / 4096 * 4096;
  scratch_ = Buffer(scratch_bytes_ * pool.threads());
}

void Attention::plan(std::vector<SequenceView> sequences, int block_size) {
  const auto blocks_of = [&](const SequenceView& s) { return (s.context_len + block_size - 1) / block_size; };
  std::size_t total = 0;
  for (const SequenceView& sequence : sequences) total += blocks_of(sequence);
  if (total * sizeof(std::int32_t) > tables_.size()) pool_.quiesce();
  tables_.reserve(total * sizeof(std::int32_t));
  auto* table = tables_.as<std::int32_t>();
  for (SequenceView& sequence : sequences) {
    const int blocks = blocks_of(sequence);
    std::copy(sequence.blocks, sequence.blocks + blocks, table);
    sequence.blocks = table;
    table += blocks;
  }
  plan_.make(shape_, sequences, pool_.threads());
  partials_.reserve(plan_.partial_floats() * sizeof(float));
  const std::size_t result_bytes = (plan_.result_floats() * sizeof(float) + 63) / 64 * 64;
  if (result_bytes > result_bytes_) {
    pool_.quiesce();
    result_bytes_ = result_bytes;
    results_ = Buffer(result_bytes * pool_.threads());
  }
  const std::size_t counters = plan_.folded().size() * shape_.num_kv_heads;
  if (left_.size() < counters) left_ = std::vector<std::atomic<int>>(counters);
}

void Attention::run(const AttendRowsView& rows, const KvLayer& kv) {
  const int heads = shape_.num_kv_heads;
  for (std::size_t i = 0; i < plan_.folded().size() * heads; ++i) {
    left_[i].store(plan_.folded()[i / heads].parts, std::memory_order_relaxed);
  }
  const auto jobs = static_cast<int>(plan_.pieces().size()) * heads;
  pool_.run<Job>(
      jobs, patience_for(plan_.job_ns()),
      [&](int job, int thread) { return Job{begin(job, thread, rows, kv), job}; },
      [](const Job& job, int) { job.begun.kernels->attend(job.begun.task, job.begun.scratch); },
      [&](const Job& job, int) { commit(job.job, job.begun, rows, kv); });
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

Attention::Begun Attention::begin(int job, int thread, const AttendRowsView& rows, const KvLayer& kv) const {
  const AttendPiece& piece = plan_.pieces()[job / shape_.num_kv_heads];
  Begun begun{task(piece, job % shape_.num_kv_heads, rows, kv), &kernels_,
              scratch_.as<std::uint8_t>() + thread * scratch_bytes_};
  void* const result = results_.as<std::uint8_t>() + thread * result_bytes_;
  begun.task.out = result;
  begun.task.out_stride = std::int64_t{shape_.group()} * shape_.head_dim;
  if (piece.whole >= 0) begun.task.partials = static_cast<float*>(result);
  begun.task.next = ahead(job, kv);
  begun.task.cold = job < pool_.threads();
  return begun;
}

void Attention::commit(int job, const Begun& begun, const AttendRowsView& rows, const KvLayer& kv) {
  const int kv_head = job % shape_.num_kv_heads;
  const AttendPiece& piece = plan_.pieces()[job / shape_.num_kv_heads];
  const AttendTask to = task(piece, kv_head, rows, kv);
  if (piece.whole >= 0) {
    const FoldedTask& whole = plan_.folded()[piece.whole];
    const std::int64_t split_floats = std::int64_t{piece.tokens} * shape_.group() * (kPartialHead + shape_.head_dim);
    float* const partials = partials_of(whole, kv_head) + (piece.first_split - whole.piece.first_split) * split_floats;
    std::memcpy(partials, begun.task.partials, (piece.end_split - piece.first_split) * split_floats * sizeof(float));
    return fold_when_last(piece, kv_head, rows, kv);
  }
  const std::size_t row_bytes = begun.task.out_stride * element_bytes(rows.element);
  for (int i = 0; i < piece.tokens; ++i) {
    std::memcpy(static_cast<std::uint8_t*>(to.out) + i * rows.out_stride * element_bytes(rows.element),
                static_cast<const std::uint8_t*>(begun.task.out) + i * row_bytes, row_bytes);
  }
}

float* Attention::partials_of(const FoldedTask& whole, int kv_head) const {
  return partials_.as<float>() + whole.partials_at + kv_head * whole.head_floats;
}

void Attention::fold_when_last(const AttendPiece& piece, int kv_head, const AttendRowsView& rows,
                               const KvLayer& kv) {
  std::atomic<int>& left = left_[piece.whole * shape_.num_kv_heads + kv_head];
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const FoldedTask& whole = plan_.folded()[piece.whole];
  AttendTask all = task(whole.piece, kv_head, rows, kv);
  all.partials = partials_of(whole, kv_head);
  kernels_.fold(all);
}

}  // namespace stafette
