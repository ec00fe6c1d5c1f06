// Single values to and from 16-bit floats, for code that runs once at load.
#pragma once

#include <cstdint>
#include <cstring>

namespace stafette {

inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of_bf16(std::uint16_t half) {
  return float_of_bits(static_cast<std::uint32_t>(half) << 16);
}

inline std::uint16_t bf16_of_float(float value) {
  const std::uint32_t bits = bits_of_float(value);
  if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float float_of_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t rest = half & 0x7FFF;
  if (rest >= 0x7C00) return float_of_bits(sign | 0x7F800000 | (rest & 0x3FF) << 13);
  // Multiplying by 2^112 moves the exponent, and makes subnormal halves normal.
  const float magnitude = float_of_bits(rest << 13) * float_of_bits(0x77800000);
  return float_of_bits(sign | bits_of_float(magnitude));
}

inline std::uint16_t half_of_float(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
  if (rest > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00);
  if (rest >= 0x47800000) return static_cast<std::uint16_t>(sign | 0x7C00);
  if (rest < 0x38800000) {
    // Adding 0.5 aligns a subnormal half's last bit with the last bit of the sum, and rounds it.
    const float aligned = float_of_bits(rest) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_of_float(aligned) - 0x3F000000));
  }
  const std::uint32_t even = rest >> 13 & 1;
  return static_cast<std::uint16_t>(sign | ((rest - 0x38000000 + 0xFFF + even) >> 13));
}

}  // namespace stafette
