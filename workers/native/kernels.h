// What the engine asks of a processor: a table of functions that each instruction set fills.
//
// Every function computes a token's row by the same sequence of roundings whatever other rows
// stand beside it, so results do not depend on batching, chunking or the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stafette {

constexpr int kGroup = 32;      // columns that share a weight scale and an activation scale
constexpr int kTileRows = 16;   // weight rows that are interleaved in a tile
constexpr int kMaxTokens = 16;  // tokens that one multiplication takes
constexpr int kMaxHeadDim = 512;
constexpr int kSplit = 128;     // context positions that one softmax partial covers

enum class Kind : std::int32_t { Int4, Int8, Bf16 };
constexpr int kNumKinds = 3;

enum class Element : std::int32_t { Float32, Bfloat16, Float16 };

inline int element_bytes(Element element) { return element == Element::Float32 ? 4 : 2; }

// A weight matrix in tiles of 16 rows: a tile's codes for all its groups, then its scales.
struct Matrix {
  Kind kind;
  int rows;
  int columns;
  int groups;       // of kGroup columns; the last may be padded with zeros
  bool offsets;     // a group has an offset beside its scale
  float unit;       // what the stored scales and offsets are to be multiplied with
  std::size_t tile_bytes;
  std::size_t scales_at;  // where in a tile the half-precision scales begin
  const std::uint8_t* data;

  int tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  const std::uint8_t* tile(int index) const { return data + index * tile_bytes; }
};

// Up to 16 tokens' activations as one multiplication reads them: [groups][tokens][kGroup].
struct Panel {
  std::int8_t* codes;      // int8 form
  std::uint16_t* halves;   // bf16 form
  float* scale;            // [groups][tokens]
  float* sum;              // [groups][tokens]: scale * sum of the group's codes
  std::int32_t* zero;      // [groups][tokens]: -128 * sum of the group's codes
  int tokens;
};

// One head of one layer of the paged KV pool.
struct KvHead {
  std::uint8_t* keys;    // of block 0
  std::uint8_t* values;  // of block 0
  std::int64_t block_stride;  // bytes
  int block_shift;            // log2 of the tokens in a block
  Element element;
};

// Context that will be read soon: fetched from memory while something else is computed.
struct AttendAhead {
  const std::int32_t* blocks;
  int position, end;  // none when equal
  KvHead kv;
};

// The queries of consecutive tokens of one sequence, for the heads that share a KV head.
struct AttendTask {
  const void* queries;  // [tokens][group * head_dim]
  Element query_element;
  std::int64_t query_stride;  // elements from token to token
  int tokens;
  int group;
  int head_dim;
  int position;  // of the first token
  const std::int32_t* blocks;
  int first_split;
  int end_split;
  float scale;
  int window;  // how many positions a token sees, itself included; 0: all
  KvHead kv;
  void* out;  // [tokens][group * head_dim]
  Element out_element;
  std::int64_t out_stride;
  AttendAhead next;  // what this thread will probably attend to next
  bool cold;         // nothing has been fetched for this task yet
  float* partials;  // not null: [its splits][tokens * group][kPartialHead + head_dim], not out
};
constexpr int kPartialHead = 2;  // maximum and sum, ahead of a partial's weighted values

struct Kernels {
  const char* name;

  // out[m * stride + r] = row r of the tile times token m, for all of the panel's tokens.
  void (*multiply)(const Matrix& weight, int tile, const Panel& in, float* out, std::int64_t stride);

  // Puts `values` (of `groups` * kGroup) into the panel as its token `slot`.
  void (*pack)(const float* values, int groups, Kind kind, const Panel& panel, int slot);
  // Puts silu(gate) * up into the panel as its group `group`. The product is, for each of the panel's
  // tokens, kGroup gate values and then kGroup up values.
  void (*swiglu)(const float* product, int group, Kind kind, const Panel& panel);

  // out = x / rms(x) * weight, rms over n; arrays are padded with zeros to a multiple of 16.
  void (*norm)(const float* x, const float* weight, int n, int padded, float eps, float* out);
  void (*rope)(float* head, const float* cos, const float* sin, int head_dim);
  void (*add)(float* into, const float* from, int n);
  // n is a multiple of 16, as head sizes are.
  void (*store)(const float* from, int n, Element element, void* to);
  void (*load)(const void* from, int n, Element element, float* to);

  void (*attend)(const AttendTask& task, void* scratch);
  void (*fold)(const AttendTask& task);
  std::size_t (*attend_scratch)(int rows, int head_dim);
};

// Rows of queries (tokens * group) that one attention task should have.
constexpr int kAttendRows = 64;

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();         // null where the compiler cannot make them
const Kernels* avx512_kernels();       // with VNNI
const Kernels* avx512_bf16_kernels();  // with VNNI and bf16 dot products

}  // namespace stafette
