#include "isa.h"

#include <cstring>

namespace stafette {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
#endif

bool always() { return true; }

struct Choice {
  const Kernels* (*table)();
  bool (*runs_here)();
};

constexpr Choice kBestFirst[] = {{avx512_bf16_kernels, has_avx512_bf16},
                                 {avx512_kernels, has_avx512},
                                 {avx2_kernels, has_avx2},
                                 {scalar_kernels, always}};

}  // namespace

const Kernels* find_kernels(const char* name) {
  for (const Choice& choice : kBestFirst) {
    const Kernels* const table = choice.table();
    if (table == nullptr || !choice.runs_here()) continue;
    if (*name == '\0' || std::strcmp(name, table->name) == 0) return table;
  }
  return nullptr;
}

}  // namespace stafette
