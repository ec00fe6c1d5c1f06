// Chains of keyed BLAKE2b hashes over blocks of token ids (RFC 7693). The state after the key's own
// block is computed once; a block of 16 tokens with its parent and extras is then one compression.

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr size_t kChunk = 128;  // bytes that one compression takes in
constexpr size_t kHash = 16;

constexpr uint64_t kIv[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

constexpr uint8_t kSigma[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read and written as they lie");

uint64_t load(const uint8_t* bytes) {
  uint64_t word;
  memcpy(&word, bytes, sizeof word);
  return word;
}

inline uint64_t rotate(uint64_t x, int bits) { return (x >> bits) | (x << (64 - bits)); }

inline void mix(uint64_t& a, uint64_t& b, uint64_t& c, uint64_t& d, uint64_t x, uint64_t y) {
  a += b + x;
  d = rotate(d ^ a, 32);
  c += d;
  b = rotate(b ^ c, 24);
  a += b + y;
  d = rotate(d ^ a, 16);
  c += d;
  b = rotate(b ^ c, 63);
}

template <int kRound>
inline void round(uint64_t* v, const uint64_t* m) {
  constexpr const uint8_t* s = kSigma[kRound % 10];
  mix(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);
  mix(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);
  mix(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);
  mix(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);
  mix(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);
  mix(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);
  mix(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);
  mix(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);
}

// `taken` counts the bytes of the whole message so far, this chunk's included.
void compress(uint64_t* h, const uint8_t* chunk, uint64_t taken, bool last) {
  uint64_t m[16];
  uint64_t v[16];
  for (int i = 0; i < 16; ++i) m[i] = load(chunk + 8 * i);
  for (int i = 0; i < 8; ++i) v[i] = h[i];
  for (int i = 0; i < 8; ++i) v[8 + i] = kIv[i];
  v[12] ^= taken;
  if (last) v[14] = ~v[14];
  round<0>(v, m);
  round<1>(v, m);
  round<2>(v, m);
  round<3>(v, m);
  round<4>(v, m);
  round<5>(v, m);
  round<6>(v, m);
  round<7>(v, m);
  round<8>(v, m);
  round<9>(v, m);
  round<10>(v, m);
  round<11>(v, m);
  for (int i = 0; i < 8; ++i) h[i] ^= v[i] ^ v[8 + i];
}

}  // namespace

extern "C" {

// A hash that has taken in its parameters and its key.
struct stafette_hash_state {
  uint64_t h[8];
  uint64_t taken;
};

__attribute__((visibility("default"))) void stafette_hash_prepare(stafette_hash_state* state,
                                                                  const uint8_t* key,
                                                                  size_t key_bytes,
                                                                  const uint8_t* person) {
  uint8_t parameters[64] = {uint8_t(kHash), uint8_t(key_bytes), 1, 1};  // fanout and depth: 1
  memcpy(parameters + 48, person, 16);
  for (int i = 0; i < 8; ++i) state->h[i] = kIv[i] ^ load(parameters + 8 * i);
  state->taken = 0;
  if (key_bytes == 0) return;
  uint8_t chunk[kChunk] = {};
  memcpy(chunk, key, key_bytes);
  state->taken = kChunk;
  compress(state->h, chunk, state->taken, false);
}

// Writes one hash for each block: of its parent's hash, its tokens and the extras' digest. `message`
// is room for the caller's block: 2 * 16 bytes and the tokens, rounded up to whole chunks.
__attribute__((visibility("default"))) void stafette_hash_chain(
    const stafette_hash_state* state, const uint8_t* tokens, size_t num_blocks, size_t block_bytes,
    const uint8_t* parent, const uint8_t* extras, uint8_t* message, uint8_t* out) {
  const size_t length = 2 * kHash + block_bytes;
  const size_t chunks = (length + kChunk - 1) / kChunk;
  memset(message, 0, chunks * kChunk);
  memcpy(message, parent, kHash);
  memcpy(message + kHash + block_bytes, extras, kHash);
  for (size_t block = 0; block < num_blocks; ++block) {
    memcpy(message + kHash, tokens + block * block_bytes, block_bytes);
    uint64_t h[8];
    memcpy(h, state->h, sizeof h);
    for (size_t i = 0; i + 1 < chunks; ++i)
      compress(h, message + i * kChunk, state->taken + (i + 1) * kChunk, false);
    compress(h, message + (chunks - 1) * kChunk, state->taken + length, true);
    memcpy(out + block * kHash, h, kHash);
    memcpy(message, h, kHash);
  }
}

}  // extern "C"
