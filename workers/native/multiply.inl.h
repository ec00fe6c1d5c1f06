// Weight tile x tokens, for quantized and for bf16 weights. Included inside an anonymous namespace.
//
// A row's result is one chain of additions over the groups in order, whatever the number of tokens.

constexpr int kParts = kTileRows / kLanes;      // registers that a tile's 16 rows take
constexpr int kAbreast = 4;                     // tokens whose integer sums are computed side by side
constexpr int kUnrolled = kParts == 1 ? 4 : 1;  // rounds of these, where registers hold all sums

inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// dots[part][n]: rows of a part times token n, for one group and N tokens. Shared codes were opened for
// other tokens as well.
template <int N>
using Dots = Vec[kParts][N];

struct Int4 {
  static constexpr int kGroupBytes = 256;
  static void open(const std::uint8_t* p, DotCodes& out) { open4(p, out); }
  template <int N, bool kShared>
  static void dot(const DotCodes& w, const std::int8_t* a, const std::int32_t*, Dots<N>& out) {
    dot4<N, kShared>(w, a, out);
  }
};

struct Int8 {
  static constexpr int kGroupBytes = 512;
  static void open(const std::uint8_t* p, DotCodes& out) { open8(p, out); }
  template <int N, bool kShared>
  static void dot(const DotCodes& w, const std::int8_t* a, const std::int32_t* zero, Dots<N>& out) {
    dot8<N, kShared>(w, a, zero, out);
  }
};

// acc[first..first+N) += scale * dot + offset * sum, for one group
template <class Code, int N, bool kOffsets, int M>
inline void add_group(const DotCodes& codes, const Vec (&scale)[kParts], const Vec (&offset)[kParts],
                      const Panel& in, int group, int first, Vec (&acc)[M][kParts]) {
  const std::int64_t at = std::int64_t{group} * M + first;
  Dots<N> dots;
  Code::template dot<N, (M > kAbreast)>(codes, in.codes + at * kGroup, in.zero + at, dots);
  for (int n = 0; n < N; ++n) {
    for (int p = 0; p < kParts; ++p) {
      Vec& sum = acc[first + n][p];
      sum = fused(dots[p][n] * scale[p], splat(in.scale[at + n]), sum);
      if (kOffsets) sum = fused(offset[p], splat(in.sum[at + n]), sum);
    }
  }
}

template <class Code, int M, bool kOffsets>
void multiply_codes(const Matrix& weight, int tile, const Panel& in, float* out, std::int64_t stride) {
  const std::uint8_t* const data = weight.tile(tile);
  const auto* scales = reinterpret_cast<const std::uint16_t*>(data + weight.scales_at);
  Vec acc[M][kParts];
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < kParts; ++p) acc[m][p] = splat(0);
  for (int g = 0; g < weight.groups; ++g) {
    const std::uint8_t* const packed = data + std::int64_t{g} * Code::kGroupBytes;
    for (int line = 0; line < Code::kGroupBytes; line += 64) prefetch(packed + weight.tile_bytes + line);
    DotCodes codes;
    Code::open(packed, codes);
    Vec scale[kParts], offset[kParts];
    for (int p = 0; p < kParts; ++p) {
      scale[p] = load_half(scales + p * kLanes);
      offset[p] = kOffsets ? load_half(scales + kTileRows + p * kLanes) : splat(0);
    }
    scales += kTileRows * (kOffsets ? 2 : 1);
    constexpr int kWhole = M / kAbreast * kAbreast;
#pragma GCC unroll kUnrolled
    for (int m = 0; m < kWhole; m += kAbreast) {
      add_group<Code, kAbreast, kOffsets, M>(codes, scale, offset, in, g, m, acc);
    }
    if constexpr (M % kAbreast != 0) {
      add_group<Code, M % kAbreast, kOffsets, M>(codes, scale, offset, in, g, kWhole, acc);
    }
  }
  const Vec unit = splat(weight.unit);
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < kParts; ++p) store(out + m * stride + p * kLanes, acc[m][p] * unit);
}

template <int M>
void multiply_int4(const Matrix& weight, int tile, const Panel& in, float* out, std::int64_t stride) {
  multiply_codes<Int4, M, true>(weight, tile, in, out, stride);
}

template <int M>
void multiply_int8(const Matrix& weight, int tile, const Panel& in, float* out, std::int64_t stride) {
  if (weight.offsets) {
    multiply_codes<Int8, M, true>(weight, tile, in, out, stride);
  } else {
    multiply_codes<Int8, M, false>(weight, tile, in, out, stride);
  }
}

template <int M>
void multiply_bf16(const Matrix& weight, int tile, const Panel& in, float* out, std::int64_t stride) {
  const auto* const data = reinterpret_cast<const std::uint32_t*>(weight.tile(tile));
  const auto* const words = reinterpret_cast<const std::uint32_t*>(in.halves);
  constexpr int kPairs = kGroup / 2;
  for (int part = 0; part < kParts; ++part) {
    Vec acc[M];
    for (int m = 0; m < M; ++m) acc[m] = splat(0);
    for (int g = 0; g < weight.groups; ++g) {
      const std::uint32_t* const w = data + std::int64_t{g} * kPairs * kTileRows + part * kLanes;
      const std::uint32_t* const a = words + std::int64_t{g} * kPairs * M;
      for (int k = 0; k < kPairs; ++k) {
        prefetch(w + weight.tile_bytes / 4 + k * kTileRows);
        const Vec column = load_words(w + k * kTileRows);
        for (int m = 0; m < M; ++m) acc[m] = dot_pairs(acc[m], column, splat_word(a[m * kPairs + k]));
      }
    }
    for (int m = 0; m < M; ++m) store(out + m * stride + part * kLanes, acc[m]);
  }
}

template <int M>
void multiply_any(const Matrix& weight, int tile, const Panel& in, float* out, std::int64_t stride) {
  switch (weight.kind) {
    case Kind::Int4: return multiply_int4<M>(weight, tile, in, out, stride);
    case Kind::Int8: return multiply_int8<M>(weight, tile, in, out, stride);
    case Kind::Bf16: return multiply_bf16<M>(weight, tile, in, out, stride);
  }
}

void multiply(const Matrix& weight, int tile, const Panel& in, float* out, std::int64_t stride) {
  using Function = void (*)(const Matrix&, int, const Panel&, float*, std::int64_t);
  static constexpr Function kByTokens[kMaxTokens] = {
      multiply_any<1>,  multiply_any<2>,  multiply_any<3>,  multiply_any<4>,
      multiply_any<5>,  multiply_any<6>,  multiply_any<7>,  multiply_any<8>,
      multiply_any<9>,  multiply_any<10>, multiply_any<11>, multiply_any<12>,
      multiply_any<13>, multiply_any<14>, multiply_any<15>, multiply_any<16>};
  kByTokens[in.tokens - 1](weight, tile, in, out, stride);
}
