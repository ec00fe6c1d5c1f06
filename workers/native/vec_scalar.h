// Eight floats in plain C++, which any compiler turns into whatever its target has.
// To be included inside an anonymous namespace.

constexpr int kLanes = 8;
constexpr bool kPairedAttention = false;

struct Vec {
  float v[kLanes];
};
struct DotCodes {  // a group of a tile: [column / 4][row][column % 4], signed
  std::int16_t v[kGroup / 4][16 * 4];
};

template <class Function>
inline Vec each(Function&& function) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = function(i);
  return out;
}

inline Vec load(const float* p) { return each([&](int i) { return p[i]; }); }
inline void store(float* p, Vec a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline Vec splat(float x) { return each([&](int) { return x; }); }
inline Vec operator+(Vec a, Vec b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline Vec operator-(Vec a, Vec b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline Vec operator*(Vec a, Vec b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline Vec operator/(Vec a, Vec b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline Vec fused(Vec a, Vec b, Vec c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline Vec larger(Vec a, Vec b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Vec smaller(Vec a, Vec b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline Vec magnitude(Vec a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
// Adding and taking away 1.5 * 2^23 rounds to the nearest whole, even at ties: |x| < 2^22 here.
inline Vec rounded(Vec a) { return each([&](int i) { return (a.v[i] + 12582912.0f) - 12582912.0f; }); }

inline float total(Vec a) {
  float sum = 0;
  for (float x : a.v) sum += x;
  return sum;
}
// to[i] = the sum of from[i]'s lanes, for four
inline void store_totals(float* to, const Vec* from) {
  for (int i = 0; i < 4; ++i) to[i] = total(from[i]);
}
inline float largest(Vec a) {
  float most = a.v[0];
  for (float x : a.v) most = x > most ? x : most;
  return most;
}

// value * 2^power for whole powers in -127..127; -127 gives zero
inline Vec scaled(Vec value, Vec power) {
  return each([&](int i) {
    return value.v[i] * float_of_bits(static_cast<std::uint32_t>(static_cast<int>(power.v[i]) + 127) << 23);
  });
}

inline void store_int8(std::int8_t* p, Vec whole) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<std::int8_t>(whole.v[i]);
}
inline Vec load_half(const std::uint16_t* p) { return each([&](int i) { return float_of_half(p[i]); }); }
inline void store_half(std::uint16_t* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = half_of_float(a.v[i]);
}
inline Vec load_bf16(const std::uint16_t* p) { return each([&](int i) { return float_of_bf16(p[i]); }); }
inline void store_bf16(std::uint16_t* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = bf16_of_float(a.v[i]);
}
inline Vec load_words(const std::uint32_t* p) { return each([&](int i) { return float_of_bits(p[i]); }); }
inline Vec splat_word(std::uint32_t x) { return splat(float_of_bits(x)); }

inline void zip_rows(const std::uint16_t* a, const std::uint16_t* b, int n, std::uint32_t* to) {
  for (int i = 0; i < n; ++i) to[i] = a[i] | static_cast<std::uint32_t>(b[i]) << 16;
}

// acc + the dot product of two bf16 in every lane
inline Vec dot_pairs(Vec acc, Vec a, Vec b) {
  return each([&](int i) {
    const std::uint32_t x = bits_of_float(a.v[i]), y = bits_of_float(b.v[i]);
    const float high = float_of_bits(x & 0xFFFF0000) * float_of_bits(y & 0xFFFF0000);
    return float_of_bits(x << 16) * float_of_bits(y << 16) + (high + acc.v[i]);
  });
}

// Sixteen rows of 16 words become 16 columns: to[k * stride + t] = from[t][k].
inline void transpose(const std::uint32_t* const* from, std::uint32_t* to, std::int64_t stride) {
  for (int t = 0; t < 16; ++t)
    for (int k = 0; k < 16; ++k) to[k * stride + t] = from[t][k];
}

// ---- weight codes ----

inline void open4(const std::uint8_t* packed, DotCodes& out) {
  for (int i = 0; i < 4; ++i) {
    const std::uint8_t* const both = packed + 64 * i;
    for (int j = 0; j < 64; ++j) out.v[i][j] = both[j] & 0x0F;
    for (int j = 0; j < 64; ++j) out.v[i + 4][j] = both[j] >> 4;
  }
}
inline void open8(const std::uint8_t* packed, DotCodes& out) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 64; ++j) out.v[i][j] = static_cast<std::int16_t>(packed[64 * i + j] - 128);
}

inline Vec dot_codes(const DotCodes& codes, int part, const std::int8_t* in) {
  std::int32_t sum[kLanes] = {};
  for (int i = 0; i < 8; ++i) {
    const std::int8_t* const four = in + 4 * i;
    for (int r = 0; r < kLanes; ++r) {
      const std::int16_t* const w = codes.v[i] + 4 * (part * kLanes + r);
      sum[r] += w[0] * four[0] + w[1] * four[1] + w[2] * four[2] + w[3] * four[3];
    }
  }
  return each([&](int i) { return static_cast<float>(sum[i]); });
}
template <int N, bool>
inline void dot4(const DotCodes& codes, const std::int8_t* in, Vec (&dots)[2][N]) {
  for (int n = 0; n < N; ++n)
    for (int part = 0; part < 2; ++part) dots[part][n] = dot_codes(codes, part, in + n * kGroup);
}
template <int N, bool>
inline void dot8(const DotCodes& codes, const std::int8_t* in, const std::int32_t*, Vec (&dots)[2][N]) {
  dot4<N, true>(codes, in, dots);
}
