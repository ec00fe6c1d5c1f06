// The activations of all tokens of a step, cut into panels of up to 16 tokens.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>

#include "buffer.h"
#include "kernels.h"

namespace stafette {

class Panels {
 public:
  // Memory moves here, and nowhere else.
  void reserve(int tokens, int groups) {
    room_ = std::size_t(tokens) * groups;
    values_.reserve(room_ * kGroup * 2);
    scale_.reserve(room_ * sizeof(float));
    sum_.reserve(room_ * sizeof(float));
    zero_.reserve(room_ * sizeof(std::int32_t));
  }

  void shape(int tokens, int groups, Kind kind) {
    assert(std::size_t(tokens) * groups <= room_);
    tokens_ = tokens;
    groups_ = groups;
    kind_ = kind;
    const int wanted = (tokens + kMaxTokens - 1) / kMaxTokens;
    width_ = wanted == 0 ? 1 : (tokens + wanted - 1) / wanted;  // even panels: 17 tokens are 9 and 8
  }

  int tokens() const { return tokens_; }
  int groups() const { return groups_; }
  Kind kind() const { return kind_; }
  int count() const { return tokens_ == 0 ? 0 : (tokens_ + width_ - 1) / width_; }
  int width() const { return width_; }
  int first_token(int panel) const { return panel * width_; }

  Panel at(int panel) const {
    const std::ptrdiff_t cell = std::ptrdiff_t(first_token(panel)) * groups_;
    return {values_.as<std::int8_t>() + cell * kGroup,
            values_.as<std::uint16_t>() + cell * kGroup,
            scale_.as<float>() + cell,
            sum_.as<float>() + cell,
            zero_.as<std::int32_t>() + cell,
            std::min(width_, tokens_ - first_token(panel))};
  }

 private:
  int tokens_ = 0, groups_ = 0, width_ = 1;
  Kind kind_ = Kind::Bf16;
  std::size_t room_ = 0;  // cells: tokens * groups
  Buffer values_, scale_, sum_, zero_;
};

}  // namespace stafette
