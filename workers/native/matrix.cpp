#include "matrix.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "half.h"

namespace stafette {
namespace {

constexpr float kLargestStored = 32768;  // scales are stored as halves, below their largest

// One row of a part, in a form from which every kind of tile can be made.
struct Row {
  std::vector<std::uint8_t> codes;  // Int4: 0..15; Int8: code + 128
  std::vector<float> scale, offset;
  std::vector<float> values;  // dense rows

  explicit Row(int groups)
      : codes(groups * kGroup), scale(groups), offset(groups), values(groups * kGroup) {}
};

struct Found {
  const PartDesc* part;
  std::int64_t row;
};

Found find_row(const std::vector<PartDesc>& parts, std::int64_t target) {
  for (const PartDesc& part : parts) {
    const std::int64_t past = target - part.first_row;
    if (past < 0 || past % part.stride >= part.block) continue;
    const std::int64_t row = past / part.stride * part.block + past % part.stride;
    if (row < part.rows) return {&part, row};
  }
  return {nullptr, 0};
}

bool is_dense(const PartDesc& part) { return part.source >= static_cast<int>(Source::Bfloat16); }

float dense_value(const PartDesc& part, std::int64_t at) {
  switch (static_cast<Source>(part.source)) {
    case Source::Bfloat16: return float_of_bf16(static_cast<const std::uint16_t*>(part.data)[at]);
    case Source::Float16: return float_of_half(static_cast<const std::uint16_t*>(part.data)[at]);
    default: return static_cast<const float*>(part.data)[at];
  }
}

void read_dense(const PartDesc& part, std::int64_t row, int columns, Row& out) {
  std::fill(out.values.begin() + columns, out.values.end(), 0.0f);
  for (int c = 0; c < columns; ++c) out.values[c] = dense_value(part, row * columns + c);
}

void read_codes(const PartDesc& part, std::int64_t row, int columns, Kind kind, Row& out) {
  const int groups = columns / kGroup;
  for (int g = 0; g < groups; ++g) {
    out.scale[g] = part.scale[row * groups + g];
    out.offset[g] = part.offset == nullptr ? 0 : part.offset[row * groups + g];
  }
  if (static_cast<Source>(part.source) == Source::Int8) {
    const auto* const codes = static_cast<const std::uint8_t*>(part.data) + row * columns;
    for (int c = 0; c < columns; ++c) out.codes[c] = codes[c] ^ 0x80;
    return;
  }
  const auto* const pairs = static_cast<const std::uint8_t*>(part.data) + row * (columns / 2);
  const std::uint8_t lift = kind == Kind::Int8 ? 128 : 0;
  for (int i = 0; i < columns / 2; ++i) {
    out.codes[2 * i] = static_cast<std::uint8_t>((pairs[i] & 0x0F) + lift);
    out.codes[2 * i + 1] = static_cast<std::uint8_t>((pairs[i] >> 4) + lift);
  }
}

void round_to_codes(Row& row) {
  for (std::size_t g = 0; g < row.scale.size(); ++g) {
    const float* const values = row.values.data() + g * kGroup;
    float peak = 0;
    for (int i = 0; i < kGroup; ++i) peak = std::max(peak, std::fabs(values[i]));
    row.scale[g] = peak / 127;
    row.offset[g] = 0;
    const float inverse = peak > 0 ? 127 / peak : 0;
    for (int i = 0; i < kGroup; ++i) {
      row.codes[g * kGroup + i] = static_cast<std::uint8_t>(std::lrintf(values[i] * inverse) + 128);
    }
  }
}

void expand_codes(Row& row, Kind kind) {
  const float zero = kind == Kind::Int8 ? 128 : 0;
  for (std::size_t i = 0; i < row.values.size(); ++i) {
    const std::size_t g = i / kGroup;
    row.values[i] = row.scale[g] * (row.codes[i] - zero) + row.offset[g];
  }
}

void clear(Row& row) {
  std::fill(row.codes.begin(), row.codes.end(), 0);
  std::fill(row.scale.begin(), row.scale.end(), 0.0f);
  std::fill(row.offset.begin(), row.offset.end(), 0.0f);
  std::fill(row.values.begin(), row.values.end(), 0.0f);
}

void read_row(const std::vector<PartDesc>& parts, std::int64_t target, const Matrix& to, Row& out) {
  const Found found = find_row(parts, target);
  if (found.part == nullptr) return clear(out);
  if (is_dense(*found.part)) {
    read_dense(*found.part, found.row, to.columns, out);
    if (to.kind != Kind::Bf16) round_to_codes(out);
    return;
  }
  read_codes(*found.part, found.row, to.columns, to.kind, out);
  if (to.kind == Kind::Bf16) expand_codes(out, to.kind);
}

void put_codes(const Row& row, int lane, const Matrix& to, std::uint8_t* tile) {
  const int words = to.kind == Kind::Int4 ? 4 : 8;
  for (int g = 0; g < to.groups; ++g) {
    const std::uint8_t* const codes = row.codes.data() + g * kGroup;
    std::uint8_t* const out = tile + std::int64_t{g} * words * 64 + lane * 4;
    for (int i = 0; i < words; ++i) {
      std::uint32_t four, upper = 0;
      std::memcpy(&four, codes + 4 * i, 4);
      if (to.kind == Kind::Int4) std::memcpy(&upper, codes + 16 + 4 * i, 4);
      four |= upper << 4;
      std::memcpy(out + 64 * i, &four, 4);
    }
  }
}

void put_scales(const Row& row, int lane, const Matrix& to, std::uint8_t* tile) {
  auto* out = reinterpret_cast<std::uint16_t*>(tile + to.scales_at) + lane;
  const float factor = 1 / to.unit;
  for (int g = 0; g < to.groups; ++g) {
    *out = half_of_float(row.scale[g] * factor);
    out += kTileRows;
    if (!to.offsets) continue;
    *out = half_of_float(row.offset[g] * factor);
    out += kTileRows;
  }
}

void put_values(const Row& row, int lane, const Matrix& to, std::uint8_t* tile) {
  auto* const out = reinterpret_cast<std::uint16_t*>(tile);
  for (int c = 0; c < to.groups * kGroup; ++c) {
    out[(c / 2 * kTileRows + lane) * 2 + c % 2] = bf16_of_float(row.values[c]);
  }
}

float largest_scale(const std::vector<PartDesc>& parts, int columns) {
  float most = 0;
  for (const PartDesc& part : parts) {
    const std::int64_t count = part.rows * (columns / kGroup);
    if (is_dense(part)) {
      for (std::int64_t i = 0; i < part.rows * columns; ++i) {
        most = std::max(most, std::fabs(dense_value(part, i)) / 127);
      }
      continue;
    }
    for (std::int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(part.scale[i]));
    if (part.offset == nullptr) continue;
    for (std::int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(part.offset[i]));
  }
  return most;
}

// The power of two that brings the largest scale just below the largest half.
float unit_of(const std::vector<PartDesc>& parts, int columns) {
  const float most = largest_scale(parts, columns);
  if (!(most > 0) || !std::isfinite(most)) return 1;
  int exponent;
  std::frexp(most / kLargestStored, &exponent);
  return std::ldexp(1.0f, exponent);
}

bool has_offsets(Kind kind, const std::vector<PartDesc>& parts) {
  if (kind == Kind::Int4) return true;
  return std::any_of(parts.begin(), parts.end(), [](const PartDesc& p) { return p.offset != nullptr; });
}

}  // namespace

PackedMatrix::PackedMatrix(ThreadPool& pool, Arena& arena, Kind kind, int rows, int columns,
                           const std::vector<PartDesc>& parts) {
  view_.kind = kind;
  view_.rows = rows;
  view_.columns = columns;
  view_.groups = (columns + kGroup - 1) / kGroup;
  view_.offsets = kind != Kind::Bf16 && has_offsets(kind, parts);
  view_.unit = kind == Kind::Bf16 ? 1 : unit_of(parts, columns);
  lay_out(arena);
  pool.run(view_.tiles(), [&](int tile, int) { pack_tile(tile, parts); });
}

void PackedMatrix::lay_out(Arena& arena) {
  const std::size_t code_bytes[kNumKinds] = {256, 512, 1024};  // of a group of a tile
  const std::size_t groups = view_.groups;
  view_.scales_at = groups * code_bytes[static_cast<int>(view_.kind)];
  const std::size_t halves = view_.kind == Kind::Bf16 ? 0 : kTileRows * (view_.offsets ? 2 : 1);
  view_.tile_bytes = (view_.scales_at + groups * halves * 2 + 63) / 64 * 64;
  view_.data = data_ = arena.take(view_.tile_bytes * view_.tiles());
}

void PackedMatrix::pack_tile(int tile, const std::vector<PartDesc>& parts) {
  Row row(view_.groups);
  std::uint8_t* const out = data_ + tile * view_.tile_bytes;
  for (int lane = 0; lane < kTileRows; ++lane) {
    read_row(parts, std::int64_t{tile} * kTileRows + lane, view_, row);
    if (view_.kind == Kind::Bf16) {
      put_values(row, lane, view_, out);
    } else {
      put_codes(row, lane, view_, out);
      put_scales(row, lane, view_, out);
    }
  }
}

void PackedMatrix::row(int index, float* out) const {
  const std::uint8_t* const tile = view_.tile(index / kTileRows);
  const int lane = index % kTileRows;
  const int per_group = kTileRows * (view_.offsets ? 2 : 1);
  const auto* const halves = reinterpret_cast<const std::uint16_t*>(tile);
  const auto* const scales = reinterpret_cast<const std::uint16_t*>(tile + view_.scales_at) + lane;
  for (int c = 0; c < view_.groups * kGroup; ++c) {
    const int g = c / kGroup, in_group = c % kGroup;
    if (view_.kind == Kind::Bf16) {
      out[c] = float_of_bf16(halves[(c / 2 * kTileRows + lane) * 2 + c % 2]);
      continue;
    }
    const bool narrow = view_.kind == Kind::Int4;
    const int at = narrow ? in_group % 16 : in_group;
    const int byte = tile[g * (narrow ? 256 : 512) + at / 4 * 64 + lane * 4 + at % 4];
    const int code = narrow ? (in_group < 16 ? byte & 15 : byte >> 4) : byte - 128;
    const float offset = view_.offsets ? float_of_half(scales[g * per_group + kTileRows]) : 0;
    out[c] = (float_of_half(scales[g * per_group]) * static_cast<float>(code) + offset) * view_.unit;
  }
}

}  // namespace stafette
