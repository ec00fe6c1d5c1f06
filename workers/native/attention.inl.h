// Attention of a few query rows over the paged pool. Included inside an anonymous namespace.
//
// The context is cut at fixed positions into splits of kSplit. A split yields a partial (maximum,
// sum, weighted values) from itself alone, and partials are folded in order: a row's result depends
// neither on the rows beside it nor on who computed which split.

// c[r][n] = sum over k of a[r][k] * b[k][n], for R rows and T registers of columns
template <class Math, int R, int T>
inline void product_block(const std::uint32_t* a, std::int64_t lda, const std::uint32_t* b,
                          std::int64_t ldb, int depth, float* c, std::int64_t ldc, Fetcher& ahead) {
  Vec acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = splat(0);
  for (int k = 0; k < depth; ++k) {
    if (Math::kPerWord == 2 && k % 2 == 0) ahead.step();
    Vec row[R];
    for (int r = 0; r < R; ++r) row[r] = splat_word(a[r * lda + k]);
    for (int t = 0; t < T; ++t) {
      const Vec column = load_words(b + k * ldb + t * kLanes);
      for (int r = 0; r < R; ++r) acc[r][t] = Math::madd(acc[r][t], column, row[r]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) store(c + r * ldc + t * kLanes, acc[r][t]);
}

// Registers of columns that R rows take: enough sums to keep both multipliers busy, in 16 registers
// (or 32 of the wide ones).
constexpr int wide_of(int rows) { return kLanes == 16 || rows == 2 || rows == 3 ? 4 : rows == 1 ? 8 : 2; }

template <class Math, int R>
inline void product_rows(const std::uint32_t* a, std::int64_t lda, const std::uint32_t* b,
                         std::int64_t ldb, int depth, float* c, std::int64_t ldc, int columns,
                         Fetcher& ahead) {
  constexpr int kWide = wide_of(R);
  int n = 0;
  for (; n + kWide * kLanes <= columns; n += kWide * kLanes)
    product_block<Math, R, kWide>(a, lda, b + n, ldb, depth, c + n, ldc, ahead);
  for (; n < columns; n += kLanes) product_block<Math, R, 1>(a, lda, b + n, ldb, depth, c + n, ldc, ahead);
}

template <class Math>
void product(const std::uint32_t* a, std::int64_t lda, int rows, const std::uint32_t* b, std::int64_t ldb,
             int depth, float* c, std::int64_t ldc, int columns, Fetcher& ahead) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    product_rows<Math, 4>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, columns, ahead);
  a += r * lda;
  c += r * ldc;
  if (rows - r == 3) product_rows<Math, 3>(a, lda, b, ldb, depth, c, ldc, columns, ahead);
  if (rows - r == 2) product_rows<Math, 2>(a, lda, b, ldb, depth, c, ldc, columns, ahead);
  if (rows - r == 1) product_rows<Math, 1>(a, lda, b, ldb, depth, c, ldc, columns, ahead);
}

inline bool is_paired(const AttendTask& task) { return task.kv.element == Element::Bfloat16; }

// Pairs: keys become columns, so that a register has a score of 16 keys.
void gather_key_pairs(const AttendTask& task, int first, int count, const Scratch& s, Fetcher& ahead) {
  const int words = task.head_dim / PairMath::kPerWord;
  for (int t0 = 0; t0 < count; t0 += 16) {
    const std::uint32_t* from[16];
    for (int t = 0; t < 16; ++t) {
      const int position = first + (t0 + t < count ? t0 + t : t0);
      from[t] = reinterpret_cast<const std::uint32_t*>(row_of(task, task.kv.keys, position));
    }
    int k = 0;
    for (; k + 16 <= words; k += 16) {
      transpose(from, s.keys + k * kSplit + t0, kSplit);
      ahead.step();
      ahead.step();
      for (const std::uint32_t*& row : from) row += 16;
    }
    for (int rest = 0; k + rest < words; ++rest)
      for (int t = 0; t < 16; ++t) s.keys[(k + rest) * kSplit + t0 + t] = from[t][rest];
  }
}

void score(PairMath, const AttendTask& task, int first, int count, const Scratch& s, Fetcher& ahead) {
  const int rows = task.tokens * task.group, words = task.head_dim / PairMath::kPerWord;
  gather_key_pairs(task, first, count, s, ahead);
  product<PairMath>(s.queries, words, rows, s.keys, kSplit, words, s.scores, kSplit, (count + 15) / 16 * 16, ahead);
}

void gather_values(PairMath, const AttendTask& task, int first, int count, const Scratch& s, Fetcher& ahead) {
  const auto row = [&](int t) {
    return reinterpret_cast<const std::uint16_t*>(row_of(task, task.kv.values, first + t));
  };
  const int hd = task.head_dim;
  std::uint32_t* to = s.values;
  for (int t = 0; t + 1 < count; t += 2, to += hd) {
    zip_rows(row(t), row(t + 1), hd, to);
    ahead.step();
  }
  if (count % 2 == 0) return;
  const std::uint16_t* const last = row(count - 1);
  for (int d = 0; d < hd; ++d) to[d] = last[d];
}

// Rows of the pool, widened; up to `padded` the last one again.
void widen_rows(const AttendTask& task, const std::uint8_t* head, int first, int count, int padded,
                std::uint32_t* to, Fetcher& ahead) {
  for (int t = 0; t < padded; ++t, to += task.head_dim) {
    const std::uint8_t* const row = row_of(task, head, first + (t < count ? t : count - 1));
    ahead.step();
    load_row(row, task.head_dim, task.kv.element, reinterpret_cast<float*>(to));
  }
}

// Scores of R queries and T keys, both as rows of floats. A score is one chain along the head, whose
// lanes are added up last: the same bits for every R and T.
template <int R, int T>
inline void score_block(const float* queries, const float* keys, int head_dim, float* scores) {
  Vec acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = splat(0);
  for (int d = 0; d < head_dim; d += kLanes) {
    Vec row[R];
    for (int r = 0; r < R; ++r) row[r] = load(queries + r * head_dim + d);
    for (int t = 0; t < T; ++t) {
      const Vec key = load(keys + t * head_dim + d);
      for (int r = 0; r < R; ++r) acc[r][t] = fused(row[r], key, acc[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; t += 4) store_totals(scores + r * kSplit + t, &acc[r][t]);
}

template <int R, int T>
inline void score_keys(const float* queries, const float* keys, int num_keys, int head_dim, float* scores) {
  for (int t = 0; t < num_keys; t += T)
    score_block<R, T>(queries, keys + std::int64_t{t} * head_dim, head_dim, scores + t);
}

constexpr int kNearKeys = 32;  // that stay in the nearest cache while all queries pass

void score(FloatMath, const AttendTask& task, int first, int count, const Scratch& s, Fetcher& ahead) {
  const int rows = task.tokens * task.group, hd = task.head_dim, padded = (count + 7) / 8 * 8;
  widen_rows(task, task.kv.keys, first, count, padded, s.keys, ahead);
  const float* const keys = reinterpret_cast<const float*>(s.keys);
  const float* const queries = reinterpret_cast<const float*>(s.queries);
  for (int t = 0; t < padded; t += kNearKeys) {
    const int n = padded - t < kNearKeys ? padded - t : kNearKeys;
    const float* const near = keys + std::int64_t{t} * hd;
    int r = 0;
    for (; r + 3 <= rows; r += 3) score_keys<3, 4>(queries + r * hd, near, n, hd, s.scores + r * kSplit + t);
    if (rows - r == 2) score_keys<2, 4>(queries + r * hd, near, n, hd, s.scores + r * kSplit + t);
    if (rows - r == 1) score_keys<1, 8>(queries + r * hd, near, n, hd, s.scores + r * kSplit + t);
  }
}

void gather_values(FloatMath, const AttendTask& task, int first, int count, const Scratch& s, Fetcher& ahead) {
  widen_rows(task, task.kv.values, first, count, count, s.values, ahead);
}

template <class Math>
void load_queries(const AttendTask& task, const Scratch& s) {
  const int width = task.group * task.head_dim;
  float* const floats = s.scores;  // not in use yet, but one chunk at a time fits for sure
  std::uint32_t* to = s.queries;
  for (int i = 0; i < task.tokens; ++i) {
    for (int d = 0; d < width; d += kLanes) {
      store(floats, load_as(task.queries, i * task.query_stride + d, task.query_element));
      Math::encode(floats, kLanes, to + (std::int64_t{i} * width + d) / Math::kPerWord);
    }
  }
}

// Turns a row of scores into weights; returns false when the row sees nothing of the split.
// Positions low..high-1 of the split are visible.
template <class Math>
bool soften(const AttendTask& task, float* scores, int low, int high, std::uint32_t* weights, float* head) {
  if (low >= high) return false;
  const int width = (high + 15) / 16 * 16;
  const float factor = task.scale * 1.44269504f;  // softmax in powers of two
  for (int t = 0; t < low; ++t) scores[t] = -INFINITY;
  for (int t = high; t < width; ++t) scores[t] = -INFINITY;
  Vec most = splat(-INFINITY);
  for (int t = 0; t < width; t += kLanes) most = larger(most, load(scores + t));
  const float peak = largest(most) * factor;
  for (int t = 0; t < width; t += kLanes) {
    store(scores + t, exp2(fused(load(scores + t), splat(factor), splat(-peak))));
  }
  Math::encode(scores, width, weights);
  // The sum is of the weights as they were rounded, so that they add up to one.
  Vec sum = splat(0);
  for (int t = 0; t < width; t += kLanes) sum = sum + Math::decode(weights, t);
  std::memset(weights + width / Math::kPerWord, 0, sizeof(std::uint32_t) * (kSplit - width) / Math::kPerWord);
  head[0] = peak;
  head[1] = total(sum);
  return true;
}

inline void fold_row(const float* partial, int head_dim, bool first, float* state) {
  if (first) {
    std::memcpy(state, partial, sizeof(float) * (kPartialHead + head_dim));
    return;
  }
  const float peak = state[0] > partial[0] ? state[0] : partial[0];
  const float mine = exp2_of(state[0] - peak), other = exp2_of(partial[0] - peak);
  state[0] = peak;
  state[1] = state[1] * mine + partial[1] * other;
  const Vec a = splat(mine), b = splat(other);
  for (int d = kPartialHead; d < kPartialHead + head_dim; d += kLanes)
    store(state + d, fused(load(partial + d), b, load(state + d) * a));
}

inline void finish_row(const AttendTask& task, const float* state, int row) {
  const int head_dim = task.head_dim;
  float out[kLanes];
  const Vec inverse = splat(1 / state[1]);
  const std::int64_t at = row / task.group * task.out_stride + std::int64_t{row % task.group} * head_dim;
  auto* const to = static_cast<std::uint8_t*>(task.out) + at * element_bytes(task.out_element);
  for (int d = 0; d < head_dim; d += kLanes) {
    store(out, load(state + kPartialHead + d) * inverse);
    store_row(out, kLanes, task.out_element, to + std::int64_t{d} * element_bytes(task.out_element));
  }
}

struct Visible {
  int low, high;
};

inline Visible visible(const AttendTask& task, int row, int split) {
  const int position = task.position + row / task.group;
  const int start = split * kSplit;
  int low = 0, high = position + 1 - start;
  if (task.window > 0 && position - task.window + 1 > start) low = position - task.window + 1 - start;
  return {low, high < kSplit ? high : kSplit};
}

// The weights and weighted values of one split, for all rows. Unseen rows get a sum of zero.
template <class Math>
void attend_split(const AttendTask& task, int split, const Scratch& s, float* partial, Fetcher& ahead) {
  const int rows = task.tokens * task.group, hd = task.head_dim, width = kPartialHead + hd;
  const int first = split * kSplit, last = task.position + task.tokens - 1;
  const int count = last - first + 1 < kSplit ? last - first + 1 : kSplit;
  score(Math{}, task, first, count, s, ahead);
  gather_values(Math{}, task, first, count, s, ahead);
  constexpr int kWords = kSplit / Math::kPerWord;
  for (int r = 0; r < rows; ++r) {
    const Visible seen = visible(task, r, split);
    float* const head = partial + std::int64_t{r} * width;
    if (!soften<Math>(task, s.scores + r * kSplit, seen.low, seen.high, s.weights + r * kWords, head)) {
      std::memset(s.weights + r * kWords, 0, sizeof(std::uint32_t) * kWords);
      head[0] = -INFINITY;
      head[1] = 0;
    }
  }
  const int depth = (count + Math::kPerWord - 1) / Math::kPerWord;
  product<Math>(s.weights, kWords, rows, s.values, hd, depth, partial + kPartialHead, width, hd, ahead);
}

template <class Math>
void attend_with(const AttendTask& task, void* memory) {
  const int rows = task.tokens * task.group, width = kPartialHead + task.head_dim;
  const Scratch s(memory, rows, task.head_dim);
  Fetcher ahead = make_fetcher(task);
  load_queries<Math>(task, s);
  if (task.partials != nullptr) {
    for (int split = task.first_split; split < task.end_split; ++split)
      attend_split<Math>(task, split, s, task.partials + std::int64_t{split - task.first_split} * rows * width, ahead);
    return;
  }
  for (int r = 0; r < rows; ++r) s.state[std::int64_t{r} * width + 1] = 0;
  for (int split = task.first_split; split < task.end_split; ++split) {
    attend_split<Math>(task, split, s, s.partial, ahead);
    for (int r = 0; r < rows; ++r) {
      const float* const partial = s.partial + std::int64_t{r} * width;
      float* const state = s.state + std::int64_t{r} * width;
      if (partial[1] != 0) fold_row(partial, task.head_dim, state[1] == 0, state);
    }
  }
  for (int r = 0; r < rows; ++r) finish_row(task, s.state + std::int64_t{r} * width, r);
}

void attend(const AttendTask& task, void* memory) {
  if (kPairedAttention && is_paired(task)) return attend_with<PairMath>(task, memory);
  attend_with<FloatMath>(task, memory);
}

// Folds the partials of a task whose splits were computed apart, and writes its output. The first
// partial of a row serves as its state.
void fold(const AttendTask& task) {
  const int rows = task.tokens * task.group, width = kPartialHead + task.head_dim;
  const std::int64_t step = std::int64_t{rows} * width;
  for (int r = 0; r < rows; ++r) {
    float* state = nullptr;
    for (int split = 0; split < task.end_split - task.first_split; ++split) {
      float* const partial = task.partials + split * step + std::int64_t{r} * width;
      if (partial[1] == 0) continue;
      if (state == nullptr) {
        state = partial;
      } else {
        fold_row(partial, task.head_dim, false, state);
      }
    }
    finish_row(task, state, r);
  }
}
