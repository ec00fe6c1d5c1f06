// The kernels for AVX2 without VNNI.
#include "kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cmath>
#include <cstring>

#define STAFETTE_TARGET "avx2,fma,f16c"
#define STAFETTE_VEC "vec_avx2.h"
#define STAFETTE_ISA "avx2"
#define STAFETTE_TABLE avx2_kernels
#include "target.h"
#include "table.inl.h"

#else

namespace stafette {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace stafette

#endif
