// The kernels for AVX-512 with VNNI.
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#define STAFETTE_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
#define STAFETTE_VEC "vec_avx512.h"
#define STAFETTE_ISA "avx512"
#define STAFETTE_TABLE avx512_kernels
#include "target.h"
#include "table.inl.h"

#else

namespace stafette {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace stafette

#endif
