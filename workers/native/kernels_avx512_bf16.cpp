// The kernels for AVX-512 with VNNI and bf16 dot products.
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#define STAFETTE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
#define STAFETTE_HAS_BF16  // the compiler's own macro does not follow a pragma that a macro makes
#define STAFETTE_VEC "vec_avx512.h"
#define STAFETTE_ISA "avx512_bf16"
#define STAFETTE_TABLE avx512_bf16_kernels
#include "target.h"
#include "table.inl.h"

#else

namespace stafette {
const Kernels* avx512_bf16_kernels() { return nullptr; }
}  // namespace stafette

#endif
