#include "standalone.h"

#include <cstring>
#include <vector>

#include "bad_step.h"

namespace stafette {
namespace {

AttendShape shape_of(const AttentionDesc& desc) {
  return {desc.num_heads, desc.num_kv_heads, desc.head_dim, desc.sliding_window};
}

int log2_of(int n) {
  int shift = 0;
  while ((1 << shift) < n) ++shift;
  return shift;
}

// Strides of the description are in elements.
KvLayer layer_of(const AttentionDesc& desc) {
  const auto element = static_cast<Element>(desc.kv_element);
  const std::int64_t bytes = element_bytes(element);
  return {static_cast<std::uint8_t*>(desc.layer_kv),
          desc.block_stride * bytes,
          desc.value_stride * bytes,
          desc.head_stride * bytes,
          log2_of(desc.block_size),
          element};
}

// Sequences without context are padding: they are left out, and their rows are zeros.
std::vector<SequenceView> sequences_of(const AttentionDesc& desc) {
  std::vector<SequenceView> sequences;
  for (int i = 0; i < desc.num_seqs; ++i) {
    const int start = desc.query_starts[i], stop = desc.query_starts[i + 1], context = desc.context_lens[i];
    if (start < 0 || stop < start || stop > desc.num_tokens) throw BadStep{"query_starts must ascend"};
    if (context == 0 || stop == start) continue;
    const int blocks = (context + desc.block_size - 1) / desc.block_size;
    if (context < stop - start || blocks > desc.table_width) throw BadStep{"context_lens out of range"};
    const std::int32_t* const table = desc.block_tables + std::int64_t{i} * desc.table_width;
    for (int b = 0; b < blocks; ++b)
      if (table[b] < 0 || table[b] >= desc.num_blocks) throw BadStep{"block_tables out of range"};
    sequences.push_back({start, stop - start, context, table});
  }
  return sequences;
}

// One row of `n` elements from k or v into the pool, by way of floats where the types differ.
void copy_row(const Kernels& kernels, const void* from, Element row, int n, Element kv, void* to) {
  if (row == kv) {
    std::memcpy(to, from, std::size_t(n) * element_bytes(kv));
    return;
  }
  float floats[kMaxHeadDim];
  kernels.load(from, n, row, floats);
  kernels.store(floats, n, kv, to);
}

}  // namespace

StandaloneAttention::StandaloneAttention(ThreadPool& pool, const Kernels& kernels, const AttentionDesc& desc)
    : pool_(pool), kernels_(kernels), attention_(pool, kernels, shape_of(desc), desc.scale) {}

void StandaloneAttention::write(const AttentionDesc& desc) {
  const std::int64_t places = desc.num_blocks * desc.block_size;
  for (int t = 0; t < desc.num_tokens; ++t)
    if (desc.slots[t] < -1 || desc.slots[t] >= places) throw BadStep{"slots out of range"};
  const KvLayer kv = layer_of(desc);
  const auto row = static_cast<Element>(desc.row_element);
  const std::int64_t in_bytes = element_bytes(row), row_bytes = desc.head_dim * element_bytes(kv.element);
  pool_.run(desc.num_tokens, [&](int token, int) {
    const std::int64_t slot = desc.slots[token];
    if (slot < 0) return;
    const std::int64_t place = slot / desc.block_size * kv.block_stride + slot % desc.block_size * row_bytes;
    for (int head = 0; head < desc.num_kv_heads; ++head) {
      const std::int64_t at = std::int64_t{head} * desc.head_dim;
      std::uint8_t* const to = kv.base + place + head * kv.head_stride;
      const auto* k = static_cast<const std::uint8_t*>(desc.k) + (token * desc.k_stride + at) * in_bytes;
      const auto* v = static_cast<const std::uint8_t*>(desc.v) + (token * desc.v_stride + at) * in_bytes;
      copy_row(kernels_, k, row, desc.head_dim, kv.element, to);
      copy_row(kernels_, v, row, desc.head_dim, kv.element, to + kv.value_stride);
    }
  });
}

void StandaloneAttention::attend(const AttentionDesc& desc) {
  attention_.plan(sequences_of(desc), desc.block_size);
  const auto element = static_cast<Element>(desc.row_element);
  const std::int64_t width = std::int64_t{desc.num_heads} * desc.head_dim;
  attention_.run({desc.q, desc.out, element, desc.q_stride, width}, layer_of(desc));
  pool_.quiesce();  // the queries are the caller's
}

}  // namespace stafette
