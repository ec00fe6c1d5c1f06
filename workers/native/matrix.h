// Weights as the kernels read them: packed once at load, from any mix of parts.
#pragma once

#include <vector>

#include "abi.h"
#include "buffer.h"
#include "kernels.h"
#include "pool.h"

namespace stafette {

class PackedMatrix {
 public:
  // Quantized parts that stay in their own width keep their codes; 4-bit codes widen to 8 bits
  // without loss; dense parts asked for as Int8 are rounded, per row and group.
  // The weights live in the arena.
  PackedMatrix(ThreadPool& pool, Arena& arena, Kind kind, int rows, int columns, const std::vector<PartDesc>& parts);

  const Matrix& view() const { return view_; }

  // Writes one row as floats, padded with zeros to a multiple of kGroup.
  void row(int index, float* out) const;

 private:
  void lay_out(Arena& arena);
  void pack_tile(int tile, const std::vector<PartDesc>& parts);

  Matrix view_{};
  std::uint8_t* data_ = nullptr;
};

}  // namespace stafette
