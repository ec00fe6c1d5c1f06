// The table of one instruction set; includes the kernels' source under the including file's target.
namespace stafette {
namespace {

#include STAFETTE_VEC
#include "rows.inl.h"
#include "multiply.inl.h"
#include "attention_memory.inl.h"
#include "attention.inl.h"

const Kernels kTable = {STAFETTE_ISA, multiply,  pack,     swiglu, norm, rope,          add,
                        store_row,    load_row,  attend,   fold,   attend_scratch};

}  // namespace

const Kernels* STAFETTE_TABLE() { return &kTable; }

}  // namespace stafette
