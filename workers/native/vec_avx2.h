// Eight floats in an AVX2 register, and the dot products of weight codes without VNNI.
// To be included inside an anonymous namespace, under the matching target.

constexpr int kLanes = 8;
constexpr bool kPairedAttention = false;  // without instructions for pairs, floats are as fast

struct Vec {
  __m256 v;
};
struct DotCodes {             // a group of a tile: 8 rows x 4 columns in each register
  __m256i codes[8][2];       // [column / 4][half of the rows]
  __m256i magnitudes[8][2];  // of 8-bit codes that are shared
};

inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec splat(float x) { return {_mm256_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fused(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
inline Vec larger(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec smaller(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec magnitude(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec rounded(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

inline float total(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
// to[i] = the sum of from[i]'s lanes, for four
inline void store_totals(float* to, const Vec* from) {
  const __m256 low = _mm256_hadd_ps(from[0].v, from[1].v), high = _mm256_hadd_ps(from[2].v, from[3].v);
  const __m256 halves = _mm256_hadd_ps(low, high);
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
inline float largest(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

// value * 2^power for whole powers in -127..127; -127 gives zero
inline Vec scaled(Vec value, Vec power) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(power.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(value.v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)))};
}

inline void store_int8(std::int8_t* p, Vec whole) {
  const __m256i words = _mm256_cvtps_epi32(whole.v);
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(shorts, shorts));
}

inline Vec load_half(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline void store_half(std::uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec load_bf16(const std::uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline void store_bf16(std::uint16_t* p, Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  const __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x400000)));
  const __m256i kept = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(even), quiet, nan));
  const __m256i high = _mm256_srli_epi32(kept, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

inline Vec load_words(const std::uint32_t* p) { return {_mm256_loadu_ps(reinterpret_cast<const float*>(p))}; }
inline Vec splat_word(std::uint32_t x) {
  return {_mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(x)))};
}

// Pairs up the bf16 of two rows: word i of `to` is a[i] | b[i] << 16, for n words.
inline void zip_rows(const std::uint16_t* a, const std::uint16_t* b, int n, std::uint32_t* to) {
  for (int i = 0; i < n; ++i) to[i] = a[i] | static_cast<std::uint32_t>(b[i]) << 16;
}

// acc + the dot product of two bf16 in every lane
inline Vec dot_pairs(Vec acc, Vec a, Vec b) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
  const __m256i wa = _mm256_castps_si256(a.v), wb = _mm256_castps_si256(b.v);
  const __m256 a1 = _mm256_castsi256_ps(_mm256_and_si256(wa, high));
  const __m256 b1 = _mm256_castsi256_ps(_mm256_and_si256(wb, high));
  const __m256 a0 = _mm256_castsi256_ps(_mm256_slli_epi32(wa, 16));
  const __m256 b0 = _mm256_castsi256_ps(_mm256_slli_epi32(wb, 16));
  return {_mm256_fmadd_ps(a0, b0, _mm256_fmadd_ps(a1, b1, acc.v))};
}

// Eight rows of 8 words become 8 columns: to[k * stride + t] = from[t][k].
inline void transpose8(const std::uint32_t* const* from, int at, std::uint32_t* to, std::int64_t stride) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = load_words(from[i] + at).v;
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    float* const low = reinterpret_cast<float*>(to + i * stride);
    float* const high = reinterpret_cast<float*>(to + (i + 4) * stride);
    _mm256_storeu_ps(low, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(high, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// Sixteen rows of 16 words become 16 columns.
inline void transpose(const std::uint32_t* const* from, std::uint32_t* to, std::int64_t stride) {
  for (int t = 0; t < 16; t += 8)
    for (int k = 0; k < 16; k += 8) transpose8(from + t, k, to + k * stride + t, stride);
}

// ---- weight codes ----

inline __m256i load_codes(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

inline void open4(const std::uint8_t* packed, DotCodes& out) {
  const __m256i low = _mm256_set1_epi8(0x0F);
  for (int i = 0; i < 4; ++i)
    for (int p = 0; p < 2; ++p) {
      const __m256i both = load_codes(packed + 64 * i + 32 * p);
      out.codes[i][p] = _mm256_and_si256(both, low);
      out.codes[i + 4][p] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
    }
}
inline void open8(const std::uint8_t* packed, DotCodes& out) {
  const __m256i zero = _mm256_set1_epi8(static_cast<char>(0x80));
  for (int i = 0; i < 8; ++i)
    for (int p = 0; p < 2; ++p) {
      out.codes[i][p] = _mm256_xor_si256(load_codes(packed + 64 * i + 32 * p), zero);
      out.magnitudes[i][p] = _mm256_abs_epi8(out.codes[i][p]);
    }
}

inline __m256i splat_four(const std::int8_t* in) {
  std::int32_t four;
  std::memcpy(&four, in, 4);
  return _mm256_set1_epi32(four);
}

// Registers are too few for a group's codes: when several products want them, this makes the compiler
// read them where they are used.
template <bool kShared>
inline const DotCodes& readable(const DotCodes& codes) {
  const DotCodes* at = &codes;
  if (kShared) asm("" : "+r"(at) : "m"(*at));
  return *at;
}
// And too few for its products: this makes it add each to its sum before it goes on.
inline void settle(__m256i& sum) { asm("" : "+x"(sum)); }

// A tile's 16 rows at once, so that an activation is read once for both halves. Sixteen products of
// at most 15 * 127 add up to less than 2^15.
template <int N, bool kShared>
inline void dot4(const DotCodes& opened, const std::int8_t* in, Vec (&dots)[2][N]) {
  const DotCodes& w = readable<kShared>(opened);
  __m256i sums[2][N];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    for (int n = 0; n < N; ++n) {
      const __m256i four = splat_four(in + n * kGroup + 4 * i);
      for (int p = 0; p < 2; ++p) {
        const __m256i pairs = _mm256_maddubs_epi16(w.codes[i][p], four);
        sums[p][n] = i == 0 ? pairs : _mm256_add_epi16(sums[p][n], pairs);
        settle(sums[p][n]);
      }
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int n = 0; n < N; ++n)
    for (int p = 0; p < 2; ++p) dots[p][n].v = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums[p][n], ones));
}

// Codes are signed here: the magnitude goes in as unsigned, its sign moves to the activation.
template <int N, bool kShared>
inline void dot8(const DotCodes& opened, const std::int8_t* in, const std::int32_t*, Vec (&dots)[2][N]) {
  const DotCodes& w = readable<kShared>(opened);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[2][N];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    for (int n = 0; n < N; ++n) {
      const __m256i four = splat_four(in + n * kGroup + 4 * i);
      for (int p = 0; p < 2; ++p) {
        const __m256i signedness = _mm256_sign_epi8(four, w.codes[i][p]);
        const __m256i magnitude = kShared ? w.magnitudes[i][p] : _mm256_abs_epi8(w.codes[i][p]);
        const __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signedness), ones);
        sums[p][n] = i == 0 ? pairs : _mm256_add_epi32(sums[p][n], pairs);
        settle(sums[p][n]);
      }
    }
  }
  for (int n = 0; n < N; ++n)
    for (int p = 0; p < 2; ++p) dots[p][n].v = _mm256_cvtepi32_ps(sums[p][n]);
}
