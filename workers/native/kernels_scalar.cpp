// The kernels in plain C++: for processors without AVX2, and the yardstick for the others.
#include <cmath>
#include <cstring>

#include "half.h"
#include "kernels.h"

#define STAFETTE_VEC "vec_scalar.h"
#define STAFETTE_ISA "scalar"
#define STAFETTE_TABLE scalar_kernels
#include "table.inl.h"
