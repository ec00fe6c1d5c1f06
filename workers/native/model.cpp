#include "model.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "bad_step.h"

namespace stafette {
namespace {

constexpr int kRowsInline = 4;    // rows that are not worth waking others for
constexpr int kHeadTiles = 8;     // of the vocabulary, in one job

int round_up(int n, int to) { return (n + to - 1) / to * to; }

double now() {
  using namespace std::chrono;
  return duration<double>(steady_clock::now().time_since_epoch()).count();
}

AttendShape shape_of(const ModelDesc& desc) {
  return {desc.num_heads, desc.num_kv_heads, desc.head_dim, desc.sliding_window};
}

int log2_of(int n) {
  int shift = 0;
  while ((1 << shift) < n) ++shift;
  return shift;
}

}  // namespace

Model::Model(ThreadPool& pool, const Kernels& kernels, const ModelDesc& desc,
             const std::vector<LayerDesc>& layers)
    : pool_(pool),
      kernels_(kernels),
      desc_(desc),
      embedding_(static_cast<const PackedMatrix*>(desc.embedding)),
      head_(&static_cast<const PackedMatrix*>(desc.head)->view()),
      attention_(pool, kernels, shape_of(desc), 1 / std::sqrt(static_cast<float>(desc.head_dim))),
      hidden_(desc.hidden_size),
      padded_(round_up(desc.hidden_size, kGroup)),
      q_size_(desc.num_heads * desc.head_dim),
      kv_size_(desc.num_kv_heads * desc.head_dim) {
  final_norm_ = keep(desc.final_norm, hidden_);
  for (const LayerDesc& layer : layers) layers_.push_back(keep_layer(layer));
  const int widest = std::max({desc.head_dim, 2 * kGroup, kHeadTiles * kTileRows});
  const std::size_t product = std::size_t(kChunkPanels) * kMaxTokens * widest;
  thread_floats_bytes_ = (product + padded_ + 4 * kGroup) * sizeof(float);
  thread_floats_ = Buffer(thread_floats_bytes_ * pool.threads());
}

const float* Model::keep(const float* values, int n) {
  if (values == nullptr) return nullptr;
  kept_.emplace_back(round_up(n, kGroup) * sizeof(float));
  std::memcpy(kept_.back().as<float>(), values, n * sizeof(float));
  return kept_.back().as<float>();
}

Model::Layer Model::keep_layer(const LayerDesc& desc) {
  const auto view = [](const void* matrix) { return &static_cast<const PackedMatrix*>(matrix)->view(); };
  return {view(desc.qkv),
          view(desc.output),
          view(desc.gate_up),
          view(desc.down),
          keep(desc.input_norm, hidden_),
          keep(desc.mlp_norm, hidden_),
          keep(desc.qkv_bias, q_size_ + 2 * kv_size_),
          keep(desc.q_norm, desc_.head_dim),
          keep(desc.k_norm, desc_.head_dim)};
}

float* Model::thread_floats(int thread) const {
  return thread_floats_.as<float>() + thread * (thread_floats_bytes_ / sizeof(float));
}

void Model::note(Phase phase) {
  const double time = now();
  times_[phase] += time - last_;
  last_ = time;
}

void Model::take_times(double* seconds) {
  std::memcpy(seconds, times_, sizeof(times_));
  std::memset(times_, 0, sizeof(times_));
}

void Model::step(const StepDesc& step) {
  check(step);
  last_ = now();
  prepare(step);
  embed();
  for (int i = 0; i < desc_.num_layers; ++i) run_layer(i);
  head();
  hidden_rows();
}

void Model::check(const StepDesc& step) const {
  const auto outside = [](const std::int32_t* values, int n, std::int64_t limit) {
    for (int i = 0; i < n; ++i)
      if (values[i] < 0 || values[i] >= limit) return true;
    return false;
  };
  if (step.num_tokens < 1 || step.num_seqs < 1) throw BadStep{"a step needs tokens and sequences"};
  if (outside(step.token_ids, step.num_tokens, desc_.vocab_size)) throw BadStep{"token_ids out of range"};
  if (outside(step.positions, step.num_tokens, desc_.num_positions)) throw BadStep{"positions out of range"};
  if (outside(step.logit_rows, step.num_logits, step.num_tokens)) throw BadStep{"logit_rows out of range"};
  if (outside(step.hidden_rows, step.num_hidden, step.num_tokens)) throw BadStep{"hidden_rows out of range"};
  check_sequences(step);
}

void Model::check_sequences(const StepDesc& step) const {
  if (step.query_starts[0] != 0) throw BadStep{"query_starts must begin with 0"};
  for (int i = 0; i < step.num_seqs; ++i) {
    const int start = step.query_starts[i], stop = step.query_starts[i + 1];
    if (stop <= start || stop > step.num_tokens) throw BadStep{"query_starts must ascend"};
    const int context = step.context_lens[i];
    const int blocks = (context + desc_.block_size - 1) / desc_.block_size;
    if (context < stop - start || blocks > step.table_width) throw BadStep{"context_lens out of range"};
    for (int t = start; t < stop; ++t)
      if (step.positions[t] != context - (stop - t)) throw BadStep{"positions must end at the context"};
    for (int b = 0; b < blocks; ++b) {
      const int block = step.block_tables[std::int64_t{i} * step.table_width + b];
      if (block < 0 || block >= step.num_blocks) throw BadStep{"block_tables out of range"};
    }
  }
  if (step.query_starts[step.num_seqs] != step.num_tokens) throw BadStep{"query_starts must end with the tokens"};
}

void Model::prepare(const StepDesc& step) {
  step_ = &step;
  rows_ = step.num_tokens;
  sequences_.clear();
  sequence_of_.resize(rows_);
  place_.resize(rows_);
  for (int i = 0; i < step.num_seqs; ++i) {
    const int start = step.query_starts[i], stop = step.query_starts[i + 1];
    const std::int32_t* const blocks = step.block_tables + std::int64_t{i} * step.table_width;
    sequences_.push_back({start, stop - start, step.context_lens[i], blocks});
    std::fill(sequence_of_.begin() + start, sequence_of_.begin() + stop, i);
  }
  attention_.plan(sequences_, desc_.block_size);
  reserve_rows();
}

// Nothing may move within a step: a thread that is left behind may still read it.
void Model::reserve_rows() {
  const int tokens = std::max(rows_, step_->num_logits);
  if (tokens <= room_) return;
  pool_.quiesce();
  room_ = tokens + tokens / 4;
  const int outer = std::max(padded_, round_up(q_size_, kGroup)) / kGroup;
  panels_.reserve(room_, outer);
  inner_.reserve(room_, round_up(desc_.intermediate_size, kGroup) / kGroup);
  x_ = Buffer(sizeof(float) * room_ * padded_);
  q_ = Buffer(sizeof(float) * room_ * round_up(q_size_, kGroup));
  attended_ = Buffer(sizeof(float) * room_ * round_up(q_size_, kGroup));
}

template <class Function>
void Model::for_rows(int rows, Function&& function) {
  if (rows <= kRowsInline) {
    for (int row = 0; row < rows; ++row) function(row, 0);
    return;
  }
  const int each = std::max(kRowsInline, rows / (8 * pool_.threads()));
  pool_.run((rows + each - 1) / each, [&](int job, int thread) {
    const int stop = std::min(rows, (job + 1) * each);
    for (int row = job * each; row < stop; ++row) function(row, thread);
  });
}

void Model::embed() {
  for_rows(rows_, [&](int row, int) {
    embedding_->row(step_->token_ids[row], x_.as<float>() + std::int64_t{row} * padded_);
  });
  note(kEmbed);
}

// Rows of floats become what `reader` multiplies with; `norm` is null when they go in as they are.
void Model::pack_rows(const float* rows, std::int64_t stride, const float* norm, const Matrix& reader,
                      Panels& to) {
  to.shape(rows_, reader.groups, reader.kind);
  for_rows(rows_, [&](int row, int thread) {
    const float* values = rows + row * stride;
    if (norm != nullptr) {
      float* const normed = thread_floats(thread);
      kernels_.norm(values, norm, hidden_, padded_, desc_.norm_eps, normed);
      values = normed;
    }
    kernels_.pack(values, reader.groups, reader.kind, to.at(row / to.width()), row % to.width());
  });
  note(kNorm);
}

Model::Product Model::begin(const Matrix& weight, const Panels& in, int unit_tiles, int job, int thread) const {
  const int units = (weight.tiles() + unit_tiles - 1) / unit_tiles;
  const int unit = job % units, first = job / units * kChunkPanels;
  Product product{};
  product.kernels = &kernels_;
  product.weight = &weight;
  product.unit = unit;
  product.tile = unit * unit_tiles;
  product.tiles = std::min(unit_tiles, weight.tiles() - product.tile);
  product.token = in.first_token(first);
  product.num_panels = std::min(kChunkPanels, in.count() - first);
  product.width = in.width();
  product.stride = unit_tiles * kTileRows;
  product.out = thread_floats(thread);
  for (int p = 0; p < product.num_panels; ++p) {
    product.panels[p] = in.at(first + p);
    product.tokens += product.panels[p].tokens;
  }
  return product;
}

void Model::compute(const Product& product, int) {
  for (int t = 0; t < product.tiles; ++t)
    for (int p = 0; p < product.num_panels; ++p) {
      float* const out = product.out + p * product.width * product.stride + t * kTileRows;
      product.kernels->multiply(*product.weight, product.tile + t, product.panels[p], out, product.stride);
    }
}

// Multiplies all rows. A job is `unit_tiles` tiles times a chunk of panels; `done` gets its product
// as [tokens][unit_tiles * kTileRows] floats while they are in the cache.
template <class Done>
void Model::multiply_all(const Matrix& weight, const Panels& in, int unit_tiles, Done&& done) {
  const int units = (weight.tiles() + unit_tiles - 1) / unit_tiles;
  const int chunks = (in.count() + kChunkPanels - 1) / kChunkPanels;
  // At some 300 billion operations a second; reading a weight costs as much as using it 8 times.
  const double tokens = std::min(in.tokens(), kChunkPanels * kMaxTokens) + 8.0;
  const double job_ns = tokens * unit_tiles * kTileRows * weight.columns * 2 / 300;
  pool_.run<Product>(
      units * chunks, patience_for(job_ns),
      [&](int job, int thread) { return begin(weight, in, unit_tiles, job, thread); }, &Model::compute,
      [&](const Product& product, int thread) {
        done(product.unit, product.token, product.tokens, product.out, thread);
      });
}

void Model::add_product(const Matrix& weight, const Panels& in, Phase phase) {
  constexpr int kTiles = 2;
  multiply_all(weight, in, kTiles, [&](int unit, int token, int tokens, float* product, int) {
    constexpr int kColumns = kTiles * kTileRows;
    const int column = unit * kColumns, n = std::min(kColumns, hidden_ - column);
    for (int i = 0; i < tokens; ++i) {
      kernels_.add(x_.as<float>() + std::int64_t{token + i} * padded_ + column, product + i * kColumns, n);
    }
  });
  note(phase);
}

void Model::run_layer(int index) {
  const Layer& layer = layers_[index];
  attention_block(layer, index);
  mlp_block(layer);
}

void Model::attention_block(const Layer& layer, int index) {
  pack_rows(x_.as<float>(), padded_, layer.input_norm, *layer.qkv, panels_);
  const int head_dim = desc_.head_dim, heads = desc_.num_heads, kv_heads = desc_.num_kv_heads;
  multiply_all(*layer.qkv, panels_, head_dim / kTileRows,
               [&](int head, int token, int tokens, float* product, int) {
                 for (int i = 0; i < tokens; ++i) {
                   float* const values = product + std::int64_t{i} * head_dim;
                   finish_head(layer, head, token + i, values);
                   if (head < heads) continue;
                   const int kv = head - heads;
                   write_kv(index, kv % kv_heads, kv >= kv_heads, token + i, values);
                 }
               });
  note(kQkv);
  const std::int64_t stride = round_up(q_size_, kGroup);
  const int block_shift = log2_of(desc_.block_size);
  const auto element = static_cast<Element>(desc_.kv_element);
  const std::int64_t head_bytes = std::int64_t{desc_.block_size} * head_dim * element_bytes(element);
  const std::int64_t layer_bytes = 2 * kv_heads * head_bytes;
  const KvLayer kv{static_cast<std::uint8_t*>(step_->kv_pool) + index * layer_bytes,
                   layer_bytes * desc_.num_layers, kv_heads * head_bytes, head_bytes, block_shift, element};
  attention_.run({q_.as<float>(), attended_.as<float>(), Element::Float32, stride, stride}, kv);
  note(kAttend);
  if (index == desc_.num_layers - 1) keep_wanted_rows();
  pack_rows(attended_.as<float>(), stride, nullptr, *layer.output, panels_);
  add_product(*layer.output, panels_, kOutput);
}

// Past the last layer's attention, only rows that somebody asked for go on: they move together.
void Model::keep_wanted_rows() {
  std::fill(place_.begin(), place_.end(), -1);
  for (int i = 0; i < step_->num_logits; ++i) place_[step_->logit_rows[i]] = 0;
  for (int i = 0; i < step_->num_hidden; ++i) place_[step_->hidden_rows[i]] = 0;
  const std::int64_t wide = padded_, stride = round_up(q_size_, kGroup);
  int kept = 0;
  for (int row = 0; row < rows_; ++row) {
    if (place_[row] < 0) continue;
    if (kept != row) {
      std::memcpy(x_.as<float>() + kept * wide, x_.as<float>() + row * wide, wide * sizeof(float));
      std::memcpy(attended_.as<float>() + kept * stride, attended_.as<float>() + row * stride, stride * sizeof(float));
    }
    place_[row] = kept++;
  }
  rows_ = kept;
}

const float* Model::wanted_row(int token) const {
  return x_.as<float>() + std::int64_t{place_[token]} * padded_;
}

// Bias, norm and rope of one head of one token; queries go to their buffer.
void Model::finish_head(const Layer& layer, int head, int token, float* values) const {
  const int head_dim = desc_.head_dim;
  if (layer.qkv_bias != nullptr) kernels_.add(values, layer.qkv_bias + head * head_dim, head_dim);
  if (head >= desc_.num_heads + desc_.num_kv_heads) return;
  const float* const norm = head < desc_.num_heads ? layer.q_norm : layer.k_norm;
  if (norm != nullptr) kernels_.norm(values, norm, head_dim, head_dim, desc_.norm_eps, values);
  const std::int64_t row = std::int64_t{step_->positions[token]} * (head_dim / 2);
  kernels_.rope(values, desc_.cos + row, desc_.sin + row, head_dim);
  if (head >= desc_.num_heads) return;
  const std::int64_t stride = round_up(q_size_, kGroup);
  std::memcpy(q_.as<float>() + token * stride + head * head_dim, values, head_dim * sizeof(float));
}

void Model::write_kv(int layer, int head, bool is_value, int token, const float* values) const {
  const int size = desc_.block_size, position = step_->positions[token];
  const std::int32_t block = sequences_[sequence_of_[token]].blocks[position / size];
  std::int64_t row = std::int64_t{block} * desc_.num_layers + layer;
  row = (row * 2 + is_value) * desc_.num_kv_heads + head;
  row = row * size + position % size;
  const auto element = static_cast<Element>(desc_.kv_element);
  auto* const to = static_cast<std::uint8_t*>(step_->kv_pool) + row * desc_.head_dim * element_bytes(element);
  kernels_.store(values, desc_.head_dim, element, to);
}

void Model::mlp_block(const Layer& layer) {
  pack_rows(x_.as<float>(), padded_, layer.mlp_norm, *layer.gate_up, panels_);
  inner_.shape(rows_, layer.down->groups, layer.down->kind);
  constexpr int kColumns = 2 * kGroup;
  multiply_all(*layer.gate_up, panels_, kColumns / kTileRows,
               [&](int unit, int token, int tokens, float* product, int) {
                 for (int i = 0; i < tokens; i += inner_.width()) {
                   const Panel panel = inner_.at((token + i) / inner_.width());
                   kernels_.swiglu(product + i * kColumns, unit, inner_.kind(), panel);
                 }
               });
  note(kGateUp);
  add_product(*layer.down, inner_, kDown);
}

void Model::head() {
  rows_ = step_->num_logits;
  if (rows_ == 0) return;
  panels_.shape(rows_, head_->groups, head_->kind);
  for_rows(rows_, [&](int row, int thread) {
    float* const normed = thread_floats(thread);
    const float* const x = wanted_row(step_->logit_rows[row]);
    kernels_.norm(x, final_norm_, hidden_, padded_, desc_.norm_eps, normed);
    kernels_.pack(normed, head_->groups, head_->kind, panels_.at(row / panels_.width()), row % panels_.width());
  });
  multiply_all(*head_, panels_, kHeadTiles, [&](int unit, int token, int tokens, float* product, int) {
    constexpr int kColumns = kHeadTiles * kTileRows;
    const int column = unit * kColumns, n = std::min(kColumns, desc_.vocab_size - column);
    for (int i = 0; i < tokens; ++i) {
      float* const to = step_->logits + std::int64_t{token + i} * desc_.vocab_size + column;
      std::memcpy(to, product + i * kColumns, n * sizeof(float));
    }
  });
  note(kHead);
}

void Model::hidden_rows() {
  float* const normed = thread_floats(0);
  for (int i = 0; i < step_->num_hidden; ++i) {
    const float* const x = wanted_row(step_->hidden_rows[i]);
    kernels_.norm(x, final_norm_, hidden_, padded_, desc_.norm_eps, normed);
    std::memcpy(step_->hidden + std::int64_t{i} * hidden_, normed, hidden_ * sizeof(float));
  }
}

}  // namespace stafette
