// Attention of a few query rows over the paged pool. Included inside an anonymous namespace.
//
// The context is cut at fixed positions into splits of kSplit. A split yields a partial (maximum,
// sum, weighted values) from itself alone, and partials are folded in order: a row's result depends
// neither on the rows beside it nor on who computed which split.

// Operands are 32-bit words: one float, or a pair of bf16 that are neighbours along the summed axis.
struct FloatMath {
  static constexpr int kPerWord = 1;
  static Vec madd(Vec acc, Vec column, Vec row) { return fused(column, row, acc); }
  static Vec decode(const std::uint32_t* from, int at) { return load_words(from + at); }
  static void encode(const float* from, int n, std::uint32_t* to) {
    for (int i = 0; i < n; i += kLanes) store(reinterpret_cast<float*>(to) + i, load(from + i));
  }
};

struct PairMath {
  static constexpr int kPerWord = 2;
  static Vec madd(Vec acc, Vec column, Vec row) { return dot_pairs(acc, column, row); }
  static Vec decode(const std::uint32_t* from, int at) {
    return load_bf16(reinterpret_cast<const std::uint16_t*>(from) + at);
  }
  static void encode(const float* from, int n, std::uint32_t* to) {
    for (int i = 0; i < n; i += kLanes) store_bf16(reinterpret_cast<std::uint16_t*>(to) + i, load(from + i));
  }
};

// Where a task keeps its intermediate results.
struct Scratch {
  std::uint32_t* queries;  // [rows][words of a head]
  std::uint32_t* keys;     // [words of a head][kSplit]
  std::uint32_t* values;   // [words of a split][head_dim]
  std::uint32_t* weights;  // [rows][words of a split]
  float* scores;           // [rows][kSplit]
  float* partial;          // [rows][kPartialHead + head_dim]
  float* state;            // [rows][kPartialHead + head_dim]
  std::uint32_t* rows;     // [16][head_dim]: keys on their way to `keys`

  Scratch(void* memory, int num_rows, int head_dim) {
    auto* at = static_cast<std::uint32_t*>(memory);
    const auto take = [&at](std::int64_t words) {
      std::uint32_t* const here = at;
      at += (words + 15) / 16 * 16;
      return here;
    };
    const std::int64_t n = num_rows;
    queries = take(n * head_dim);
    keys = take(std::int64_t{kSplit} * head_dim);
    values = take(std::int64_t{kSplit} * head_dim);
    weights = take(n * kSplit);
    scores = reinterpret_cast<float*>(take(n * kSplit));
    partial = reinterpret_cast<float*>(take(n * (kPartialHead + head_dim)));
    state = reinterpret_cast<float*>(take(n * (kPartialHead + head_dim)));
    rows = take(std::int64_t{16} * head_dim);
    words = at - static_cast<std::uint32_t*>(memory);
  }
  std::int64_t words;
};

std::size_t attend_scratch(int rows, int head_dim) {
  return Scratch(nullptr, rows, head_dim).words * sizeof(std::uint32_t);
}

inline const std::uint8_t* row_at(const KvHead& kv, const std::uint8_t* head, const std::int32_t* blocks,
                                  int position, std::int64_t row_bytes) {
  const int offset = position & ((1 << kv.block_shift) - 1);
  return head + blocks[position >> kv.block_shift] * kv.block_stride + offset * row_bytes;
}

inline std::int64_t row_bytes_of(const AttendTask& task) {
  return std::int64_t{task.head_dim} * element_bytes(task.kv.element);
}

inline const std::uint8_t* row_of(const AttendTask& task, const std::uint8_t* head, int position) {
  return row_at(task.kv, head, task.blocks, position, row_bytes_of(task));
}

// Fetches keys and values a token at a time, in step with computation. A head's rows are short
// runs, which no hardware prefetcher follows from block to block; and asking for many at once
// only makes the processor wait.
struct Fetcher {
  AttendAhead own, next;  // the rest of this task's context, then the next task's
  std::int64_t row_bytes;

  void step() {
    if (own.position < own.end) return fetch(own);
    if (next.position < next.end) fetch(next);
  }

  void fetch(AttendAhead& from) {
    const KvHead& kv = from.kv;
    const std::uint8_t* const key = row_at(kv, kv.keys, from.blocks, from.position++, row_bytes);
    const std::uint8_t* const value = key + (kv.values - kv.keys);
    for (int line = 0; line < row_bytes; line += 64) {
      __builtin_prefetch(key + line, 0, 2);
      __builtin_prefetch(value + line, 0, 2);
    }
  }
};

inline Fetcher make_fetcher(const AttendTask& task) {
  const int first = task.first_split * kSplit, stop = task.position + task.tokens;
  const int end = task.end_split * kSplit < stop ? task.end_split * kSplit : stop;
  const int second = first + kSplit < end ? first + kSplit : end;
  Fetcher ahead{{task.blocks, first, second, task.kv}, task.next, row_bytes_of(task)};
  if (task.cold) {
    while (ahead.own.position < second) ahead.step();
  }
  ahead.own.position = second;
  ahead.own.end = end;
  return ahead;
}

// c[r][n] = sum over k of a[r][k] * b[k][n], for R rows and T registers of columns
template <class Math, int R, int T>
inline void product_block(const std::uint32_t* a, std::int64_t lda, const std::uint32_t* b,
                          std::int64_t ldb, int depth, float* c, std::int64_t ldc, Fetcher& ahead) {
  Vec acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = splat(0);
  for (int k = 0; k < depth; ++k) {
    if (k % 2 == 0) ahead.step();
    Vec column[T];
    for (int t = 0; t < T; ++t) column[t] = load_words(b + k * ldb + t * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec row = splat_word(a[r * lda + k]);
      for (int t = 0; t < T; ++t) acc[r][t] = Math::madd(acc[r][t], column[t], row);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) store(c + r * ldc + t * kLanes, acc[r][t]);
}

template <class Math, int R>
inline void product_rows(const std::uint32_t* a, std::int64_t lda, const std::uint32_t* b,
                         std::int64_t ldb, int depth, float* c, std::int64_t ldc, int columns,
                         Fetcher& ahead) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;
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

// One row of the pool as words along the head's axis: itself when it is stored so.
template <class Math>
const std::uint32_t* words_of(const AttendTask& task, const std::uint8_t* row, std::uint32_t* room) {
  if (Math::kPerWord == 2 && is_paired(task)) return reinterpret_cast<const std::uint32_t*>(row);
  float* const floats = reinterpret_cast<float*>(room);
  for (int i = 0; i < task.head_dim; i += kLanes) store(floats + i, load_as(row, i, task.kv.element));
  return room;
}

template <class Math>
void gather_keys(const AttendTask& task, int first, int count, const Scratch& s, Fetcher& ahead) {
  const int words = task.head_dim / Math::kPerWord;
  for (int t0 = 0; t0 < count; t0 += 16) {
    const std::uint32_t* from[16];
    for (int t = 0; t < 16; ++t) {
      std::uint32_t* const room = s.rows + std::int64_t{t} * task.head_dim;
      const int position = first + (t0 + t < count ? t0 + t : t0);
      from[t] = words_of<Math>(task, row_of(task, task.kv.keys, position), room);
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

void gather_value_pairs(const AttendTask& task, int first, int count, std::uint32_t* to, Fetcher& ahead) {
  const auto row = [&](int t) {
    return reinterpret_cast<const std::uint16_t*>(row_of(task, task.kv.values, first + t));
  };
  const int hd = task.head_dim;
  for (int t = 0; t + 1 < count; t += 2, to += hd) {
    zip_rows(row(t), row(t + 1), hd, to);
    ahead.step();
  }
  if (count % 2 == 0) return;
  const std::uint16_t* const last = row(count - 1);
  for (int d = 0; d < hd; ++d) to[d] = last[d];
}

void gather_value_floats(const AttendTask& task, int first, int count, std::uint32_t* to, Fetcher& ahead) {
  for (int t = 0; t < count; ++t, to += task.head_dim) {
    const std::uint8_t* const row = row_of(task, task.kv.values, first + t);
    ahead.step();
    float* const floats = reinterpret_cast<float*>(to);
    for (int d = 0; d < task.head_dim; d += kLanes) store(floats + d, load_as(row, d, task.kv.element));
  }
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
  const int words = hd / Math::kPerWord;
  gather_keys<Math>(task, first, count, s, ahead);
  product<Math>(s.queries, words, rows, s.keys, kSplit, words, s.scores, kSplit, (count + 15) / 16 * 16,
                ahead);
  if (Math::kPerWord == 2) {
    gather_value_pairs(task, first, count, s.values, ahead);
  } else {
    gather_value_floats(task, first, count, s.values, ahead);
  }
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
