// The library's C interface, as workers/native/library.py declares it again for ctypes.
//
// Functions that return int return 0, or a Status; stafette_error() then says what was wrong.
#pragma once

#include <cstdint>

#define STAFETTE_EXPORT extern "C" __attribute__((visibility("default")))

namespace stafette {

enum Status : int { kOk = 0, kBadArgument = 1, kOutOfMemory = 2, kFailed = 3 };

constexpr int kAbiVersion = 1;

// How a part of a matrix arrives.
enum class Source : std::int32_t { Int4, Int8, Bfloat16, Float16, Float32 };

// Some rows of a matrix. Row r of the part becomes row
// first_row + r / block * stride + r % block, so that two parts can interleave.
struct PartDesc {
  std::int32_t source;
  std::int64_t rows;
  const void* data;     // Int4: two columns a byte, the even one low; else plain rows
  const float* scale;   // [rows][columns / 32], quantized parts only
  const float* offset;  // the same, or null
  std::int64_t first_row;
  std::int64_t block;
  std::int64_t stride;
};

struct ModelDesc {
  std::int32_t vocab_size, hidden_size, intermediate_size, num_layers;
  std::int32_t num_heads, num_kv_heads, head_dim;
  std::int32_t block_size, kv_element, sliding_window;  // 0: none
  std::int32_t num_positions;
  float norm_eps;
  const float* cos;  // [num_positions][head_dim / 2]; kept alive by the caller, as are the next
  const float* sin;
  const void* embedding;  // a matrix, [vocab][hidden]
  const void* head;       // a matrix, [vocab][hidden]; may be the embedding
  const float* final_norm;
};

struct LayerDesc {
  const void *qkv, *output, *gate_up, *down;  // matrices
  const float *input_norm, *mlp_norm;         // [hidden]
  const float *qkv_bias;                      // [q + 2 * kv], or null
  const float *q_norm, *k_norm;               // [head_dim], or null
};

struct StepDesc {
  std::int32_t num_tokens, num_seqs, num_logits, num_hidden, table_width;
  const std::int32_t *token_ids, *positions, *query_starts, *context_lens, *block_tables;
  const std::int32_t *logit_rows, *hidden_rows;
  void* kv_pool;  // [blocks][layers][2][kv heads][block_size][head_dim]
  std::int64_t num_blocks;
  float* logits;  // [num_logits][vocab]
  float* hidden;  // [num_hidden][hidden]
};

// Attention alone, for one layer whose linear parts are computed elsewhere. Strides in elements.
struct AttentionDesc {
  std::int32_t num_heads, num_kv_heads, head_dim, block_size, sliding_window;
  std::int32_t num_tokens, num_seqs, table_width, kv_element, row_element;
  float scale;
  const void *q, *k, *v;  // [tokens][heads][head_dim], in row_element
  std::int64_t q_stride, k_stride, v_stride;  // from token to token
  void* layer_kv;  // [blocks][2][kv heads][block_size][head_dim]
  std::int64_t num_blocks, block_stride, value_stride, head_stride;
  const std::int32_t *query_starts, *context_lens, *block_tables;
  const std::int64_t* slots;
  void* out;  // [tokens][heads][head_dim], contiguous
};

}  // namespace stafette
