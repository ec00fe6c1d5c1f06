// The table's plain C interface, for ctypes.

#include "table.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

struct stafette_table : stafette::Table {
  using Table::Table;
};

EXPORT stafette_table* stafette_table_new(uint64_t max_entries) {
  try {
    return new stafette_table(max_entries);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
EXPORT void stafette_table_free(stafette_table* table) { delete table; }
EXPORT uint64_t stafette_table_store(stafette_table* table, uint32_t slot, uint32_t tiers,
                                     const uint8_t* hashes, size_t count, size_t width) {
  return !table ? 0 : table->store(slot, tiers, {hashes, count, width});
}
EXPORT uint64_t stafette_table_remove(stafette_table* table, uint32_t slot, uint32_t tiers,
                                      const uint8_t* hashes, size_t count, size_t width) {
  return !table ? 0 : table->remove(slot, tiers, {hashes, count, width});
}
EXPORT uint64_t stafette_table_forget(stafette_table* table, uint32_t slot) {
  return !table ? 0 : table->forget(slot);
}
EXPORT size_t stafette_table_match(stafette_table* table, const uint8_t* hashes, size_t count,
                                   size_t width, uint32_t* out) {
  if (!table) return *out = 0, 1;
  return table->match({hashes, count, width}, out);
}
EXPORT uint64_t stafette_table_held(const stafette_table* table, uint32_t slot) {
  return !table ? 0 : table->held(slot);
}
// blocks, (holder, block) entries, entries evicted, bytes
EXPORT void stafette_table_stats(const stafette_table* table, uint64_t* out) {
  if (!table) return;
  out[0] = table->num_blocks();
  out[1] = table->num_entries();
  out[2] = table->num_evicted();
  out[3] = table->bytes();
}
