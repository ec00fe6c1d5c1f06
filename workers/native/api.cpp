// The C interface: checks what it is given, and turns exceptions into status codes.
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "abi.h"
#include "bad_step.h"
#include "isa.h"
#include "matrix.h"
#include "model.h"
#include "pool.h"
#include "standalone.h"

namespace stafette {
namespace {

thread_local std::string last_error;

int fail(Status status, const char* what) {
  last_error = what;
  return status;
}

template <class Function>
int guarded(Function&& function) {
  try {
    return function();
  } catch (const BadStep& error) {
    return fail(kBadArgument, error.what);
  } catch (const std::bad_alloc&) {
    return fail(kOutOfMemory, "out of memory");
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  }
}

struct Engine {
  explicit Engine(int threads, const Kernels& table) : pool(threads), kernels(table) {}
  ThreadPool pool;
  const Kernels& kernels;
  Arena weights;
};

constexpr int kMaxThreads = 256;

const char* wrong_part(const PartDesc& part, int columns) {
  const bool dense = part.source >= static_cast<int>(Source::Bfloat16);
  if (part.source < 0 || part.source > static_cast<int>(Source::Float32)) return "unknown source";
  if (part.data == nullptr || part.rows < 1 || part.block < 1 || part.stride < part.block) return "empty part";
  if (!dense && (part.scale == nullptr || columns % kGroup != 0)) return "quantized part without groups";
  if (part.first_row < 0) return "first_row below 0";
  return nullptr;
}

bool is_kind(int kind) { return kind >= 0 && kind < kNumKinds; }

const char* wrong_model(const ModelDesc& m) {
  const bool counts = m.vocab_size > 0 && m.hidden_size > 0 && m.intermediate_size > 0 && m.num_layers > 0 &&
                      m.num_heads > 0 && m.num_kv_heads > 0 && m.num_positions > 0;
  if (!counts) return "a size is not positive";
  if (m.num_heads % m.num_kv_heads != 0) return "num_heads must be a multiple of num_kv_heads";
  if (m.head_dim < kTileRows || m.head_dim % kTileRows != 0 || m.head_dim > kMaxHeadDim) return "head_dim unsupported";
  if (m.block_size < 1 || (m.block_size & (m.block_size - 1)) != 0) return "block_size must be a power of two";
  if (m.kv_element < 0 || m.kv_element > static_cast<int>(Element::Float16)) return "kv_element unknown";
  if (m.cos == nullptr || m.sin == nullptr || m.final_norm == nullptr) return "a table is missing";
  if (m.embedding == nullptr || m.head == nullptr) return "a matrix is missing";
  return nullptr;
}

bool has_shape(const void* matrix, int rows, int columns) {
  if (matrix == nullptr) return false;
  const Matrix& view = static_cast<const PackedMatrix*>(matrix)->view();
  return view.rows >= rows && (view.columns + kGroup - 1) / kGroup == (columns + kGroup - 1) / kGroup;
}

const char* wrong_layer(const ModelDesc& m, const LayerDesc& layer) {
  const int q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  if (!has_shape(layer.qkv, q + 2 * kv, m.hidden_size)) return "qkv has the wrong shape";
  if (!has_shape(layer.output, m.hidden_size, q)) return "output has the wrong shape";
  if (!has_shape(layer.gate_up, 2 * m.intermediate_size, m.hidden_size)) return "gate_up has the wrong shape";
  if (!has_shape(layer.down, m.hidden_size, m.intermediate_size)) return "down has the wrong shape";
  if (layer.input_norm == nullptr || layer.mlp_norm == nullptr) return "a norm is missing";
  return nullptr;
}

const char* wrong_attention(const AttentionDesc& a) {
  if (a.num_kv_heads < 1 || a.num_heads < 1 || a.num_heads % a.num_kv_heads != 0) return "heads unsupported";
  if (a.head_dim < kTileRows || a.head_dim % kTileRows != 0 || a.head_dim > kMaxHeadDim) return "head_dim unsupported";
  if (a.block_size < 1 || (a.block_size & (a.block_size - 1)) != 0) return "block_size must be a power of two";
  const int last = static_cast<int>(Element::Float16);
  if (a.kv_element < 0 || a.kv_element > last || a.row_element < 0 || a.row_element > last) return "element unknown";
  return nullptr;
}

}  // namespace
}  // namespace stafette

using namespace stafette;

STAFETTE_EXPORT int stafette_abi_version() { return kAbiVersion; }

STAFETTE_EXPORT const char* stafette_error() { return last_error.c_str(); }

// The name of the kernels that would be chosen for `isa` ("" for the best), or null.
STAFETTE_EXPORT const char* stafette_isa(const char* isa) {
  const Kernels* const kernels = find_kernels(isa);
  return kernels == nullptr ? nullptr : kernels->name;
}

STAFETTE_EXPORT int stafette_engine_new(int threads, const char* isa, void** out) {
  return guarded([&]() -> int {
    const Kernels* const kernels = find_kernels(isa);
    if (kernels == nullptr) return fail(kBadArgument, "this processor cannot run these kernels");
    if (threads < 1 || threads > kMaxThreads) return fail(kBadArgument, "threads must be in 1..256");
    *out = new Engine(threads, *kernels);
    return kOk;
  });
}

STAFETTE_EXPORT void stafette_engine_free(void* engine) { delete static_cast<Engine*>(engine); }

// Returns when no thread reads memory of a past call any more: before a KV pool is freed.
STAFETTE_EXPORT void stafette_engine_quiesce(void* engine) { static_cast<Engine*>(engine)->pool.quiesce(); }

STAFETTE_EXPORT int stafette_matrix_new(void* engine, int kind, int rows, int columns,
                                        const PartDesc* parts, int num_parts, void** out) {
  return guarded([&]() -> int {
    if (!is_kind(kind) || rows < 1 || columns < 1 || num_parts < 1) return fail(kBadArgument, "empty matrix");
    for (int i = 0; i < num_parts; ++i) {
      if (const char* what = wrong_part(parts[i], columns)) return fail(kBadArgument, what);
      if (kind == static_cast<int>(Kind::Int4) && parts[i].source != static_cast<int>(Source::Int4))
        return fail(kBadArgument, "only 4-bit parts make a 4-bit matrix");
    }
    const std::vector<PartDesc> all(parts, parts + num_parts);
    auto& owner = *static_cast<Engine*>(engine);
    *out = new PackedMatrix(owner.pool, owner.weights, static_cast<Kind>(kind), rows, columns, all);
    return kOk;
  });
}

STAFETTE_EXPORT void stafette_matrix_free(void* matrix) { delete static_cast<PackedMatrix*>(matrix); }

STAFETTE_EXPORT std::int64_t stafette_matrix_bytes(const void* matrix) {
  const Matrix& view = static_cast<const PackedMatrix*>(matrix)->view();
  return static_cast<std::int64_t>(view.tile_bytes) * view.tiles();
}

STAFETTE_EXPORT int stafette_model_new(void* engine, const ModelDesc* desc, const LayerDesc* layers, void** out) {
  return guarded([&]() -> int {
    if (const char* what = wrong_model(*desc)) return fail(kBadArgument, what);
    if (!has_shape(desc->embedding, desc->vocab_size, desc->hidden_size)) return fail(kBadArgument, "embedding has the wrong shape");
    if (!has_shape(desc->head, desc->vocab_size, desc->hidden_size)) return fail(kBadArgument, "head has the wrong shape");
    for (int i = 0; i < desc->num_layers; ++i)
      if (const char* what = wrong_layer(*desc, layers[i])) return fail(kBadArgument, what);
    auto& owner = *static_cast<Engine*>(engine);
    const std::vector<LayerDesc> all(layers, layers + desc->num_layers);
    *out = new Model(owner.pool, owner.kernels, *desc, all);
    return kOk;
  });
}

STAFETTE_EXPORT void stafette_model_free(void* model) { delete static_cast<Model*>(model); }

STAFETTE_EXPORT int stafette_model_step(void* model, const StepDesc* step) {
  return guarded([&]() -> int {
    static_cast<Model*>(model)->step(*step);
    return kOk;
  });
}

STAFETTE_EXPORT void stafette_model_times(void* model, double* seconds) {
  static_cast<Model*>(model)->take_times(seconds);
}

STAFETTE_EXPORT int stafette_attention_new(void* engine, const AttentionDesc* desc, void** out) {
  return guarded([&]() -> int {
    if (const char* what = wrong_attention(*desc)) return fail(kBadArgument, what);
    auto& owner = *static_cast<Engine*>(engine);
    *out = new StandaloneAttention(owner.pool, owner.kernels, *desc);
    return kOk;
  });
}

STAFETTE_EXPORT void stafette_attention_free(void* attention) { delete static_cast<StandaloneAttention*>(attention); }

STAFETTE_EXPORT int stafette_attention_write(void* attention, const AttentionDesc* desc) {
  return guarded([&]() -> int {
    if (const char* what = wrong_attention(*desc)) return fail(kBadArgument, what);
    static_cast<StandaloneAttention*>(attention)->write(*desc);
    return kOk;
  });
}

STAFETTE_EXPORT int stafette_attention_run(void* attention, const AttentionDesc* desc) {
  return guarded([&]() -> int {
    if (const char* what = wrong_attention(*desc)) return fail(kBadArgument, what);
    static_cast<StandaloneAttention*>(attention)->attend(*desc);
    return kOk;
  });
}
