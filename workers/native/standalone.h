// Paged attention for callers that compute the rest of a model elsewhere.
#pragma once

#include "abi.h"
#include "attention.h"
#include "pool.h"

namespace stafette {

// One per shape; keeps its scratch from call to call.
class StandaloneAttention {
 public:
  StandaloneAttention(ThreadPool& pool, const Kernels& kernels, const AttentionDesc& desc);

  ~StandaloneAttention() { pool_.quiesce(); }
  StandaloneAttention(const StandaloneAttention&) = delete;
  StandaloneAttention& operator=(const StandaloneAttention&) = delete;

  // Both throw BadStep before anything is written.
  void write(const AttentionDesc& desc);
  void attend(const AttentionDesc& desc);

 private:
  ThreadPool& pool_;
  const Kernels& kernels_;
  Attention attention_;
};

}  // namespace stafette
