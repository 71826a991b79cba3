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
inline constexpr int64_t kCandidateSlack = 128;
struct IndexedValue {
  uint32_t index;
  float value;
};

struct CandidateBuffer {
  uint32_t* indices;
  float* values;
  int64_t capacity;
  int64_t count;  // how many were found; beyond `capacity` they are not stored
  // The elements that are not finite; they are no candidates.
  std::vector<IndexedValue>* non_finite;
};

struct AccumulateArguments {
  const void* gradient;  // num_elements elements of the given dtype
  float* residual;       // nullptr: none
  int64_t num_elements;
  uint32_t first_index;     // index of the first element
  uint32_t threshold_bits;  // smallest magnitude (as bits) of a candidate; at least 1
};

// What is left out when `value` is sent as bf16.
FASTCOMM_HOST_DEVICE float sent_rounding_error(float value) {
  return value - bf16_to_float(float_to_bf16(value));
}

struct TopKKernels {
  // value = gradient + residual. Appends the elements whose magnitude is at least the threshold to
  // `candidates`, in order of their index, and leaves in the residual what sending them would leave
  // out; elsewhere residual = value. Where `value` is not finite the residual stays as it is.
  void (*accumulate)(DType, const AccumulateArguments&, CandidateBuffer& candidates);
  // out[i] = factor * sum[i]; `streams`: past the cache.
  void (*write)(DType, const float* sum, float factor, bool streams, void* out,
                int64_t num_elements);
};

TopKKernels topk_kernels_baseline();
TopKKernels topk_kernels_avx2();
TopKKernels topk_kernels_avx512();
const TopKKernels& topk_kernels(Isa isa);

// Returns whether there was room.
inline bool append_one(float value, uint32_t index, CandidateBuffer& candidates) {
  const bool has_room = candidates.count < candidates.capacity;
  if (has_room) {
    candidates.indices[candidates.count] = index;
    candidates.values[candidates.count] = value;
  }
  ++candidates.count;
  return has_room;
}

inline void append_candidates_one_by_one(const float* stash, int count, uint32_t first_index,
                                         uint32_t threshold, CandidateBuffer& candidates) {
  for (int i = 0; i < count; ++i) {
    if (magnitude_bits(stash[i]) >= threshold) {
      append_one(stash[i], first_index + static_cast<uint32_t>(i), candidates);
    }
  }
}

}  // namespace fastcomm
