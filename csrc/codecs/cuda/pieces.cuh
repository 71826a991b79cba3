#pragma once
// Finding the piece of a block.

#include "codecs/cuda/dense.h"
#include "codecs/cuda/warp.cuh"
#include "codecs/dense/section.h"

namespace fastcomm {

__device__ __forceinline__ const DensePiece& piece_of_block(const DensePieces& pieces,
                                                            int64_t block) {
  return pieces[last_not_above(block, pieces.size,
                               [&](int piece) { return pieces[piece].first_block; })];
}

// A block of a piece.
template <class C>
struct PieceBlock {
  __device__ __forceinline__ PieceBlock(const DensePieces& pieces, int64_t block)
      : piece(piece_of_block(pieces, block)), index(block - piece.first_block) {
    const int64_t first = index * C::kBlockElements;
    begin = piece.begin + first;
    const int64_t left = piece.num_elements - first;
    count = left < C::kBlockElements ? static_cast<int>(left) : C::kBlockElements;
    units = (count + C::kElementsPerUnit - 1) / C::kElementsPerUnit;
    is_last = left <= C::kBlockElements;
  }
  template <class Byte>
  __device__ __forceinline__ SectionView<C, Byte> section(Byte* payload) const {
    return SectionView<C, Byte>(payload + piece.section_offset, piece.num_elements);
  }
  __device__ __forceinline__ bool is_whole() const { return count == C::kBlockElements; }

  const DensePiece piece;
  const int64_t index;  // in its section
  int64_t begin;        // index in the bucket of its first element
  int count, units;
  bool is_last;  // of its section
};

}  // namespace fastcomm
