#pragma once
// The loops of the top-k codec that depend on the instruction set.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "core/isa.h"

namespace fastcomm {

// Where candidates go. Full-vector stores may overwrite up to kCandidateSlack entries past the
// last one, so that the arrays must have room for capacity + kCandidateSlack.
inline constexpr int64_t kCandidateSlack = 64;
struct IndexedValue {
  uint32_t index;
  float value;
};

struct CandidateBuffer {
  uint32_t* indices;
  float* values;
  int64_t capacity;
  int64_t count;  // how many were found; beyond `capacity` they are not stored
  // The elements that are not finite: candidates too, but the residual does not hold them.
  std::vector<IndexedValue>* non_finite;
};

struct AccumulateArguments {
  const void* gradient;  // num_elements elements of the given dtype
  float* residual;       // nullptr: none
  int64_t num_elements;
  uint32_t first_index;     // index of the first element
  uint32_t threshold_bits;  // smallest magnitude (as bits) of a candidate; at least 1
};

struct TopKKernels {
  // value = gradient + residual; residual = value where that is finite; appends the elements whose
  // magnitude is at least the threshold to `candidates`, in order of their index.
  void (*accumulate)(DType, const AccumulateArguments&, CandidateBuffer& candidates);
  // out[i] = factor * sum[i]
  void (*write)(DType, const float* sum, float factor, void* out, int64_t num_elements);
};

const TopKKernels& topk_kernels(Isa isa);

}  // namespace fastcomm
