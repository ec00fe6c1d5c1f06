// What happens to a token's row between two multiplications. Included inside an anonymous namespace.

inline Vec exp2(Vec x) {
  const Vec clamped = smaller(larger(x, splat(-127)), splat(127));
  const Vec whole = rounded(clamped);
  const Vec f = clamped - whole;
  // Taylor's series of 2^f; |f| <= 0.5 leaves an error below 2e-7
  Vec p = splat(1.5403530e-4f);
  p = fused(p, f, splat(1.3333558e-3f));
  p = fused(p, f, splat(9.6181291e-3f));
  p = fused(p, f, splat(5.5504109e-2f));
  p = fused(p, f, splat(2.4022651e-1f));
  p = fused(p, f, splat(6.9314718e-1f));
  p = fused(p, f, splat(1));
  return scaled(p, whole);
}

inline float exp2_of(float x) {
  float lanes[kLanes];
  store(lanes, exp2(splat(x)));
  return lanes[0];
}

inline void pack_codes(const float* values, const Panel& panel, std::int64_t at) {
  Vec most = splat(0);
  for (int i = 0; i < kGroup; i += kLanes) most = larger(most, magnitude(load(values + i)));
  const float peak = largest(most);
  const float scale = peak / 127;
  const Vec inverse = splat(peak > 0 ? 127 / peak : 0);
  Vec sum = splat(0);
  for (int i = 0; i < kGroup; i += kLanes) {
    const Vec code = rounded(load(values + i) * inverse);
    store_int8(panel.codes + at * kGroup + i, code);
    sum = sum + code;
  }
  const float codes = total(sum);
  panel.scale[at] = scale;
  panel.sum[at] = scale * codes;
  panel.zero[at] = -128 * static_cast<std::int32_t>(codes);
}

void pack_group(const float* values, int group, Kind kind, const Panel& panel, int slot) {
  const std::int64_t at = std::int64_t{group} * panel.tokens + slot;
  if (kind != Kind::Bf16) return pack_codes(values, panel, at);
  for (int i = 0; i < kGroup; i += kLanes) store_bf16(panel.halves + at * kGroup + i, load(values + i));
}

void pack(const float* values, int groups, Kind kind, const Panel& panel, int slot) {
  for (int g = 0; g < groups; ++g) pack_group(values + g * kGroup, g, kind, panel, slot);
}

void norm(const float* x, const float* weight, int n, int padded, float eps, float* out) {
  Vec squares[2] = {splat(0), splat(0)};  // two chains, so that one need not wait for the other
  int i = 0;
  for (; i + 2 * kLanes <= padded; i += 2 * kLanes) {
    const Vec a = load(x + i), b = load(x + i + kLanes);
    squares[0] = fused(a, a, squares[0]);
    squares[1] = fused(b, b, squares[1]);
  }
  if (i < padded) squares[0] = fused(load(x + i), load(x + i), squares[0]);
  const float mean = total(squares[0] + squares[1]) / static_cast<float>(n);
  const Vec factor = splat(1 / std::sqrt(mean + eps));
  for (i = 0; i < padded; i += kLanes) store(out + i, load(x + i) * factor * load(weight + i));
}

void rope(float* head, const float* cos, const float* sin, int head_dim) {
  const int half = head_dim / 2;
  float* const upper = head + half;
  int i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(head + i), b = load(upper + i), c = load(cos + i), s = load(sin + i);
    store(head + i, a * c - b * s);
    store(upper + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = head[i], b = upper[i];
    head[i] = a * cos[i] - b * sin[i];
    upper[i] = b * cos[i] + a * sin[i];
  }
}

void add(float* into, const float* from, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(into + i, load(into + i) + load(from + i));
  for (; i < n; ++i) into[i] += from[i];
}

void swiglu(const float* product, int group, Kind kind, const Panel& panel) {
  const Vec minus_log2e = splat(-1.44269504f);
  for (int slot = 0; slot < panel.tokens; ++slot) {
    const float* const gate = product + slot * 2 * kGroup;
    float values[kGroup];
    for (int i = 0; i < kGroup; i += kLanes) {
      const Vec g = load(gate + i);
      store(values + i, g / (splat(1) + exp2(g * minus_log2e)) * load(gate + kGroup + i));
    }
    pack_group(values, group, kind, panel, slot);
  }
}

template <Element kElement>
void store_as(const float* from, int n, void* to) {
  auto* const halves = static_cast<std::uint16_t*>(to);
  for (int i = 0; i < n; i += kLanes) {
    if (kElement == Element::Float32) store(static_cast<float*>(to) + i, load(from + i));
    if (kElement == Element::Bfloat16) store_bf16(halves + i, load(from + i));
    if (kElement == Element::Float16) store_half(halves + i, load(from + i));
  }
}

void store_row(const float* from, int n, Element element, void* to) {
  switch (element) {
    case Element::Float32: return store_as<Element::Float32>(from, n, to);
    case Element::Bfloat16: return store_as<Element::Bfloat16>(from, n, to);
    case Element::Float16: return store_as<Element::Float16>(from, n, to);
  }
}

inline Vec load_as(const void* from, std::int64_t at, Element element) {
  const auto* const halves = static_cast<const std::uint16_t*>(from);
  if (element == Element::Bfloat16) return load_bf16(halves + at);
  if (element == Element::Float16) return load_half(halves + at);
  return load(static_cast<const float*>(from) + at);
}

void load_row(const void* from, int n, Element element, float* to) {
  for (int i = 0; i < n; i += kLanes) store(to + i, load_as(from, i, element));
}
