#include "plan.h"

#include <algorithm>

namespace stafette {
namespace {

constexpr int kJobsPerThread = 4;  // fewer than these, and long contexts are cut

}  // namespace

void AttendPlan::make(const AttendShape& shape, const std::vector<SequenceView>& sequences, int threads) {
  pieces_.clear();
  folded_.clear();
  partial_floats_ = 0;
  for (const SequenceView& sequence : sequences) cut_sequence(shape, sequence);
  const auto jobs = static_cast<int>(pieces_.size()) * shape.num_kv_heads;
  if (threads > 1 && jobs < kJobsPerThread * threads) cut_splits(shape, threads);
  measure(shape);
}

void AttendPlan::measure(const AttendShape& shape) {
  result_floats_ = 0;
  job_ns_ = 0;
  for (const AttendPiece& piece : pieces_) {
    const std::int64_t rows = std::int64_t{piece.tokens} * shape.group();
    const std::int64_t splits = piece.end_split - piece.first_split;
    const std::int64_t parts = piece.whole < 0 ? 1 : splits;
    result_floats_ = std::max(result_floats_, parts * rows * (kPartialHead + shape.head_dim));
    // Some 100 GFLOP/s, and reading a position costs about as much as computing 8 rows.
    const double flops = 4.0 * static_cast<double>((rows + 8) * splits * kSplit * shape.head_dim);
    job_ns_ = std::max(job_ns_, flops / 100);
  }
}

// The last tokens come first: they see most, and long jobs are best begun early.
void AttendPlan::cut_sequence(const AttendShape& shape, const SequenceView& sequence) {
  const int width = std::max(1, kAttendRows / shape.group());
  const int start = sequence.context_len - sequence.num_tokens;
  const int pieces = (sequence.num_tokens + width - 1) / width;
  for (int i = pieces - 1; i >= 0; --i) {
    AttendPiece piece{};
    piece.token = sequence.first_token + i * width;
    piece.tokens = std::min(width, sequence.num_tokens - i * width);
    piece.position = start + i * width;
    piece.end_split = (piece.position + piece.tokens - 1) / kSplit + 1;
    if (shape.window > 0) piece.first_split = std::max(0, piece.position - shape.window + 1) / kSplit;
    piece.blocks = sequence.blocks;
    piece.whole = -1;
    pieces_.push_back(piece);
  }
}

void AttendPlan::cut_splits(const AttendShape& shape, int threads) {
  int splits = 0;
  for (const AttendPiece& piece : pieces_) splits += piece.end_split - piece.first_split;
  const int jobs = 2 * kJobsPerThread * threads;
  const int each = std::max(1, (splits * shape.num_kv_heads + jobs - 1) / jobs);
  std::vector<AttendPiece> cut;
  for (AttendPiece& piece : pieces_) {
    const int count = piece.end_split - piece.first_split;
    if (count <= each) {
      cut.push_back(piece);
      continue;
    }
    const int rows = piece.tokens * shape.group();
    const std::int64_t head_floats = std::int64_t{count} * rows * (kPartialHead + shape.head_dim);
    const int parts = (count + each - 1) / each;
    folded_.push_back({piece, parts, partial_floats_, head_floats});
    partial_floats_ += head_floats * shape.num_kv_heads;
    for (int part = 0; part < parts; ++part) {
      AttendPiece some = piece;
      some.first_split = piece.first_split + part * each;
      some.end_split = std::min(piece.end_split, some.first_split + each);
      some.whole = static_cast<int>(folded_.size()) - 1;
      cut.push_back(some);
    }
  }
  pieces_.swap(cut);
}

}  // namespace stafette
