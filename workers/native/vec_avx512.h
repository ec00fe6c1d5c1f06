// Sixteen floats in an AVX-512 register, and the dot products of weight codes with VNNI.
// To be included inside an anonymous namespace, under the matching target.

constexpr int kLanes = 16;

struct Vec {
  __m512 v;
};
using DotCodes = __m512i[8];  // a group of a tile: 16 rows x 4 columns in each

inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline Vec splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fused(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
inline Vec larger(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec smaller(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec magnitude(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec rounded(Vec a) { return {_mm512_roundscale_ps(a.v, 0)}; }
inline float total(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline __m256 folded(Vec a) {
  const __m256d upper = _mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1);
  return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm256_castpd_ps(upper));
}
// to[i] = the sum of from[i]'s lanes, for four
inline void store_totals(float* to, const Vec* from) {
  const __m256 low = _mm256_hadd_ps(folded(from[0]), folded(from[1]));
  const __m256 high = _mm256_hadd_ps(folded(from[2]), folded(from[3]));
  const __m256 halves = _mm256_hadd_ps(low, high);
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }

// value * 2^power for whole powers in -127..127; -127 gives zero
inline Vec scaled(Vec value, Vec power) {
  const __mmask16 normal = _mm512_cmp_ps_mask(power.v, _mm512_set1_ps(-127), _CMP_GT_OQ);
  return {_mm512_maskz_scalef_ps(normal, value.v, power.v)};
}

inline void store_int8(std::int8_t* p, Vec whole) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole.v)));
}

inline Vec load_half(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_half(std::uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Vec load_bf16(const std::uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline void store_bf16(std::uint16_t* p, Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(even, nan, bits, _mm512_set1_epi32(0x400000));
  const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), high);
}

inline Vec load_words(const std::uint32_t* p) { return {_mm512_loadu_ps(p)}; }
inline Vec splat_word(std::uint32_t x) {
  return {_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x)))};
}

// Pairs up the bf16 of two rows: word i of `to` is a[i] | b[i] << 16, for n words.
inline void zip_rows(const std::uint16_t* a, const std::uint16_t* b, int n, std::uint32_t* to) {
  alignas(64) static constexpr std::uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,
                                                         37, 6, 38, 7, 39, 8,  40, 9,  41, 10, 42,
                                                         11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512i va = _mm512_loadu_si512(a + i), vb = _mm512_loadu_si512(b + i);
    _mm512_storeu_si512(to + i, _mm512_permutex2var_epi16(va, low, vb));
    _mm512_storeu_si512(to + i + 16, _mm512_permutex2var_epi16(va, high, vb));
  }
  for (; i < n; ++i) to[i] = a[i] | static_cast<std::uint32_t>(b[i]) << 16;
}

// acc + the dot product of two bf16 in every lane
inline Vec dot_pairs(Vec acc, Vec a, Vec b) {
#ifdef STAFETTE_HAS_BF16
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
  const __m512i wa = _mm512_castps_si512(a.v), wb = _mm512_castps_si512(b.v);
  const __m512 a1 = _mm512_castsi512_ps(_mm512_and_si512(wa, high));
  const __m512 b1 = _mm512_castsi512_ps(_mm512_and_si512(wb, high));
  const __m512 a0 = _mm512_castsi512_ps(_mm512_slli_epi32(wa, 16));
  const __m512 b0 = _mm512_castsi512_ps(_mm512_slli_epi32(wb, 16));
  return {_mm512_fmadd_ps(a0, b0, _mm512_fmadd_ps(a1, b1, acc.v))};
#endif
}
#ifdef STAFETTE_HAS_BF16
constexpr bool kPairedAttention = true;
#else
constexpr bool kPairedAttention = false;
#endif

// Sixteen rows of 16 words become 16 columns: to[k * stride + t] = from[t][k].
inline void transpose(const std::uint32_t* const* from, std::uint32_t* to, std::int64_t stride) {
  __m512i r[16], s[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from[i]);
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(to + i * stride, _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88));
    _mm512_storeu_si512(to + (i + 8) * stride, _mm512_shuffle_i32x4(s[i], s[i + 8], 0xDD));
    _mm512_storeu_si512(to + (i + 4) * stride, _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0x88));
    _mm512_storeu_si512(to + (i + 12) * stride, _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0xDD));
  }
}

// ---- weight codes ----

inline void open4(const std::uint8_t* packed, DotCodes& out) {
  const __m512i low = _mm512_set1_epi8(0x0F);
  for (int i = 0; i < 4; ++i) {
    const __m512i both = _mm512_loadu_si512(packed + 64 * i);
    out[i] = _mm512_and_si512(both, low);
    out[i + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
}
inline void open8(const std::uint8_t* packed, DotCodes& out) {
  for (int i = 0; i < 8; ++i) out[i] = _mm512_loadu_si512(packed + 64 * i);
}

// dots[0][n] = codes * activations of N tokens, 32 columns each
template <int N, bool>
inline void dot4(const DotCodes& codes, const std::int8_t* in, Vec (&dots)[1][N]) {
  __m512i sum[N];
  for (int n = 0; n < N; ++n) sum[n] = _mm512_setzero_si512();
  for (int i = 0; i < 8; ++i) {
    for (int n = 0; n < N; ++n) {
      std::int32_t four;
      std::memcpy(&four, in + n * kGroup + 4 * i, 4);
      sum[n] = _mm512_dpbusd_epi32(sum[n], codes[i], _mm512_set1_epi32(four));
    }
  }
  for (int n = 0; n < N; ++n) dots[0][n].v = _mm512_cvtepi32_ps(sum[n]);
}
template <int N, bool>
inline void dot8(const DotCodes& codes, const std::int8_t* in, const std::int32_t* zero, Vec (&dots)[1][N]) {
  __m512i sum[N];
  for (int n = 0; n < N; ++n) sum[n] = _mm512_set1_epi32(zero[n]);
  for (int i = 0; i < 8; ++i) {
    for (int n = 0; n < N; ++n) {
      std::int32_t four;
      std::memcpy(&four, in + n * kGroup + 4 * i, 4);
      sum[n] = _mm512_dpbusd_epi32(sum[n], codes[i], _mm512_set1_epi32(four));
    }
  }
  for (int n = 0; n < N; ++n) dots[0][n].v = _mm512_cvtepi32_ps(sum[n]);
}
