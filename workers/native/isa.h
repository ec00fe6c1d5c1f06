// Chooses the kernels: what the processor can run, or what a caller names.
#pragma once

#include "kernels.h"

namespace stafette {

// The best table that runs here; by name, that table. Null when it is unknown or cannot run here.
const Kernels* find_kernels(const char* name);

}  // namespace stafette
