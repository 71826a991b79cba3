#pragma once
// Exact top-k selection with fused accumulation.
//
// The k largest magnitudes of value = gradient + residual, over all pieces together; ties go to
// the lowest index, and zeros are never selected. So the selection is unique: it depends neither
// on the instruction set nor on how it was found.
//
// Three steps:
// - sample: 1/16 to 1/256 of the values gives a threshold that slightly more than k values exceed;
// - one pass accumulates and compacts the candidates above the threshold (TopKKernels); each thread
//   takes one part of the index space;
// - refine: a selection among the candidates, in cache, finds exactly k.
//
// Where the sample misjudged (fewer than k candidates, or far too many: ties), or a value is not
// finite, an exact selection over all values takes over.

#include <cstdint>
#include <span>
#include <vector>

#include "codecs/sparse/kernels.h"
#include "codecs/sparse/pieces.h"
#include "core/thread_pool.h"

namespace fastcomm {

// How the loops run; results do not depend on it.
struct TopKExecution {
  Isa isa;
  ThreadPool* threads;  // nullptr: only the caller's
};

// Buffers of a selection, kept from call to call so that a step allocates nothing.
class TopKSelection {
 public:
  // Selects from value = gradient + residual, and leaves in the residuals what sending the
  // selection as bf16 leaves out: the rounding errors, and the values that are not selected.
  // Where a value is not finite, the residual stays as it is; NaN and Inf are selected first.
  void run(const TopKExecution& execution, DType dtype, std::span<const TopKPiece> pieces,
           int64_t k);

  // The selection, in order of the index; at most k.
  std::span<const uint32_t> indices() const { return {indices_.data(), count_}; }
  std::span<const float> values() const { return {values_.data(), count_}; }

 private:
  // What one thread finds, in a contiguous part of the index space.
  struct Part {
    std::vector<uint32_t> indices;
    std::vector<float> values;
    std::vector<IndexedValue> non_finite;
    int64_t num_found;
    int64_t num_stored;
  };
  // Stores the candidates, at most `capacity`; returns how many there are.
  int64_t find_candidates(const TopKExecution& execution, DType dtype,
                          std::span<const TopKPiece> pieces, uint32_t threshold, int64_t capacity);
  void refine(std::span<const TopKPiece> pieces, int64_t k, uint32_t threshold);
  void select_everywhere(DType dtype, std::span<const TopKPiece> pieces, int64_t k);

  std::vector<Part> parts_;
  std::vector<uint32_t> indices_;
  std::vector<float> values_;
  std::vector<IndexedValue> non_finite_;  // in order of the index
  std::vector<uint32_t> histogram_;
  struct LeftOut {
    float* residual;
    float value;
  };
  std::vector<LeftOut> left_out_;      // candidates that were not selected
  std::vector<uint32_t> close_calls_;  // magnitudes in the bin of the cutoff
  size_t count_ = 0;
};

}  // namespace fastcomm
