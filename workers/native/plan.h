// Cuts a step's attention into tasks of similar size; one plan serves all layers of the step.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace stafette {

// Some consecutive tokens of a sequence, and the splits of its context that one job covers.
struct AttendPiece {
  int token;     // of the step
  int tokens;
  int position;  // of the first token
  int first_split, end_split;
  const std::int32_t* blocks;
  int whole = -1;  // index of the folded task that this is a part of; -1: complete in itself
};

// A task whose splits are computed by several jobs; whoever ends last folds their partials.
struct FoldedTask {
  AttendPiece piece;  // with all splits
  int parts;
  std::int64_t partials_at;  // floats; one KV head after the other
  std::int64_t head_floats;
};

struct AttendShape {
  int num_heads, num_kv_heads, head_dim, window;
  int group() const { return num_heads / num_kv_heads; }
};

struct SequenceView {
  int first_token, num_tokens, context_len;
  const std::int32_t* blocks;
};

class AttendPlan {
 public:
  void make(const AttendShape& shape, const std::vector<SequenceView>& sequences, int threads);

  const std::vector<AttendPiece>& pieces() const { return pieces_; }
  const std::vector<FoldedTask>& folded() const { return folded_; }
  std::int64_t partial_floats() const { return partial_floats_; }
  std::int64_t result_floats() const { return result_floats_; }  // at most, of one job
  double job_ns() const { return job_ns_; }                      // about, of the longest

 private:
  void cut_sequence(const AttendShape& shape, const SequenceView& sequence);
  void cut_splits(const AttendShape& shape, int threads);
  void measure(const AttendShape& shape);

  std::vector<AttendPiece> pieces_;
  std::vector<FoldedTask> folded_;
  std::int64_t partial_floats_ = 0, result_floats_ = 0;
  double job_ns_ = 0;
};

}  // namespace stafette
