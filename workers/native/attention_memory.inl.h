// Where the operands of attention lie, and how they get near in time. Included inside an anonymous
// namespace.

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
  std::uint32_t* keys;     // floats: [kSplit][head_dim]; pairs: [words of a head][kSplit]
  std::uint32_t* values;   // [words of a split][head_dim]
  std::uint32_t* weights;  // [rows][words of a split]
  float* scores;           // [rows][kSplit]
  float* partial;          // [rows][kPartialHead + head_dim]
  float* state;            // [rows][kPartialHead + head_dim]

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
