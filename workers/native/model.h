// A decoder of the Llama family: one call runs a whole step over packed weights.
#pragma once

#include <vector>

#include "abi.h"
#include "attention.h"
#include "matrix.h"
#include "panels.h"
#include "pool.h"

namespace stafette {

// What a step spends its time on; read and reset by stafette_model_times.
enum Phase : int { kEmbed, kNorm, kQkv, kAttend, kOutput, kGateUp, kDown, kHead, kNumPhases };

class Model {
 public:
  Model(ThreadPool& pool, const Kernels& kernels, const ModelDesc& desc,
        const std::vector<LayerDesc>& layers);
  ~Model() { pool_.quiesce(); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  // Throws BadStep before anything is computed or written.
  void step(const StepDesc& step);

  void take_times(double* seconds);  // [kNumPhases], since the last call

 private:
  static constexpr int kChunkPanels = 4;  // panels that one job takes: up to 64 tokens

  struct Layer {
    const Matrix *qkv, *output, *gate_up, *down;
    const float *input_norm, *mlp_norm, *qkv_bias, *q_norm, *k_norm;  // padded copies, or null
  };

  const float* keep(const float* values, int n);
  Layer keep_layer(const LayerDesc& desc);
  void check(const StepDesc& step) const;
  void check_sequences(const StepDesc& step) const;
  void prepare(const StepDesc& step);
  void embed();
  void run_layer(int index);
  void attention_block(const Layer& layer, int index);
  void mlp_block(const Layer& layer);
  void finish_head(const Layer& layer, int head, int token, float* values) const;
  void write_kv(int layer, int head, bool is_value, int token, const float* values) const;
  void keep_wanted_rows();
  const float* wanted_row(int token) const;
  void head();
  void hidden_rows();

  void pack_rows(const float* rows, std::int64_t stride, const float* norm, const Matrix& reader, Panels& to);
  void add_product(const Matrix& weight, const Panels& in, Phase phase);
  template <class Function>
  void for_rows(int rows, Function&& function);
  // A product on its way: some tiles times some panels, into the thread's own memory.
  struct Product {
    const Kernels* kernels;
    const Matrix* weight;
    int unit, tile, tiles, token, tokens, num_panels, width, stride;
    Panel panels[kChunkPanels];
    float* out;
  };
  static void compute(const Product& product, int thread);
  Product begin(const Matrix& weight, const Panels& in, int unit_tiles, int job, int thread) const;
  void reserve_rows();
  template <class Done>
  void multiply_all(const Matrix& weight, const Panels& in, int unit_tiles, Done&& done);
  float* thread_floats(int thread) const;
  void note(Phase phase);

  ThreadPool& pool_;
  const Kernels& kernels_;
  ModelDesc desc_;
  std::vector<Layer> layers_;
  std::vector<Buffer> kept_;
  const float* final_norm_;
  const PackedMatrix* embedding_;
  const Matrix* head_;
  Attention attention_;

  int hidden_, padded_, q_size_, kv_size_;
  const StepDesc* step_ = nullptr;
  std::vector<SequenceView> sequences_;
  std::vector<std::int32_t> sequence_of_;  // token -> sequence
  std::vector<std::int32_t> place_;  // token -> its row past the last layer's attention; -1: none
  int rows_ = 0, room_ = 0;
  Buffer x_, q_, attended_, thread_floats_;
  std::size_t thread_floats_bytes_;
  Panels panels_, inner_;
  double times_[kNumPhases] = {};
  double last_ = 0;
};

}  // namespace stafette
