#pragma once
// Exact top-k selection with fused accumulation.
//
// The k largest magnitudes of value = gradient + residual, over all pieces together; ties go to
// the lowest index, and zeros are never selected. So the selection is unique: it depends neither
// on the instruction set nor on how it was found.
//
//   sample     1/64 of the values gives a threshold that slightly more than k values exceed
//   one pass   accumulates and compacts the candidates above the threshold (TopKKernels)
//   refine     a radix selection among the candidates, in cache, finds exactly k
//
// Where the sample misjudged (fewer than k candidates, or far too many: ties), or a value is not
// finite, an exact selection over all values takes over.

#include <cstdint>
#include <span>
#include <vector>

#include "codecs/sparse/kernels.h"

namespace fastcomm {

// A contiguous piece of the index space 0 .. sum of num_elements that is selected from.
struct TopKPiece {
  const void* gradient;
  float* residual;  // nullptr: none
  int64_t num_elements;
};

// Element i of a piece's gradient.
float gradient_value(DType dtype, const TopKPiece& piece, int64_t i);

// Buffers of a selection, kept from call to call so that a step allocates nothing.
class TopKSelection {
 public:
  // Leaves value = gradient + residual in the residual of every piece (where finite), and selects.
  // `forced`: indices, ascending, that are selected first, as NaN: non-finite elements of a
  // received payload. Elements that are not finite come next, then the largest magnitudes.
  void run(Isa isa, DType dtype, std::span<const TopKPiece> pieces, int64_t k,
           std::span<const uint32_t> forced);

  // The selection, in order of the index; at most k.
  std::span<const uint32_t> indices() const { return {indices_.data(), count_}; }
  std::span<const float> values() const { return {values_.data(), count_}; }

 private:
  void refine(int64_t k);
  void select_everywhere(DType dtype, std::span<const TopKPiece> pieces, int64_t k);

  std::vector<uint32_t> indices_;
  std::vector<float> values_;
  std::vector<IndexedValue> non_finite_;  // in order of the index
  std::vector<uint32_t> histogram_;
  size_t count_ = 0;
};

}  // namespace fastcomm
