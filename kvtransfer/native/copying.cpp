// Copies scattered byte ranges of one memory into another, in one call for thousands of them.

#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" {

// Copies `lengths[i]` bytes at `from_offsets[i]` of `from` to `into_offsets[i]` of `into`.
__attribute__((visibility("default"))) void stafette_copy(uint8_t* into, const uint8_t* from,
                                                          const uint64_t* into_offsets,
                                                          const uint64_t* from_offsets,
                                                          const uint64_t* lengths, size_t count) {
  for (size_t i = 0; i < count; ++i)
    memcpy(into + into_offsets[i], from + from_offsets[i], lengths[i]);
}

}  // extern "C"
