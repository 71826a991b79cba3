// The top-k loops for one instruction set. kernels_<isa>.cpp includes this file after
// core/loops_<isa>.h and its compaction,
//   append_candidates(stash, count, first_index, threshold_bits, candidates)
// which appends stash[i] and its index wherever |stash[i]| >= threshold. All instruction sets
// append the same entries in the same order.
//
// The bucket is walked in chunks that stay in the L1 cache: a plain loop that every compiler
// vectorizes accumulates into a stash, then the compaction, the one place where hand-written
// intrinsics pay, picks the candidates from the stash. Nearly all candidates will be selected: the
// residual gets their rounding error at once, while its line is in the cache.

#include "core/loops.inl"

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

constexpr int kChunk = 512;

// A chunk with values that are not finite, element by element.
template <class Element>
void accumulate_non_finite(const Element* gradient, float* residual, int count,
                           uint32_t first_index, uint32_t threshold_bits,
                           CandidateBuffer& candidates) {
  for (int i = 0; i < count; ++i) {
    const uint32_t index = first_index + static_cast<uint32_t>(i);
    const float value = to_float(gradient[i]) + (residual != nullptr ? residual[i] : 0.0f);
    if (!is_finite(value)) {
      candidates.non_finite->push_back({index, with_one_nan(value)});
      continue;
    }
    const bool is_stored =
        magnitude_bits(value) >= threshold_bits && append_one(value, index, candidates);
    if (residual != nullptr) residual[i] = is_stored ? sent_rounding_error(value) : value;
  }
}

// stash = gradient + residual; returns the largest magnitude.
template <class Element, bool kHasResidual>
FASTCOMM_LOOPS_TARGET inline __attribute__((always_inline)) uint32_t
accumulate_chunk(const Element* __restrict__ gradient, const float* __restrict__ residual,
                 int count, float* __restrict__ stash) {
  constexpr int kStep = 64;  // elements between two prefetches
  uint32_t largest = 0;
  for (int first = 0; first < count; first += kStep) {
    prefetch<false>(gradient + first + kPrefetchDistance, kStep);
    if constexpr (kHasResidual) prefetch<true>(residual + first + kPrefetchDistance, kStep);
    const int end = first + kStep < count ? first + kStep : count;
    for (int i = first; i < end; ++i) {
      float value = to_float(gradient[i]);
      if constexpr (kHasResidual) value += residual[i];
      stash[i] = value;
      largest = magnitude_bits(value) > largest ? magnitude_bits(value) : largest;
    }
  }
  return largest;
}

template <class Element, bool kHasResidual>
FASTCOMM_LOOPS_TARGET void accumulate_piece(const AccumulateArguments& arguments,
                                            CandidateBuffer& candidates) {
  alignas(64) float stash[kChunk];
  for (int64_t first = 0; first < arguments.num_elements; first += kChunk) {
    const auto* gradient = static_cast<const Element*>(arguments.gradient) + first;
    float* residual = kHasResidual ? arguments.residual + first : nullptr;
    const uint32_t first_index = arguments.first_index + static_cast<uint32_t>(first);
    const bool is_whole = arguments.num_elements - first >= kChunk;
    const int count = is_whole ? kChunk : static_cast<int>(arguments.num_elements - first);
    // Twice the same, so that the compiler knows the number of iterations of whole chunks.
    const uint32_t largest =
        is_whole ? accumulate_chunk<Element, kHasResidual>(gradient, residual, kChunk, stash)
                 : accumulate_chunk<Element, kHasResidual>(gradient, residual, count, stash);
    if (largest >= kInfinityBits) {
      accumulate_non_finite(gradient, residual, count, first_index, arguments.threshold_bits,
                            candidates);
      continue;
    }
    if constexpr (kHasResidual) {
      std::memcpy(residual, stash, static_cast<size_t>(count) * sizeof(float));
    }
    const int64_t num_before = candidates.count;
    append_candidates(stash, count, first_index, arguments.threshold_bits, candidates);
    if constexpr (kHasResidual) {
      const int64_t end =
          candidates.count < candidates.capacity ? candidates.count : candidates.capacity;
      for (int64_t i = num_before; i < end; ++i) {
        residual[candidates.indices[i] - first_index] = sent_rounding_error(candidates.values[i]);
      }
    }
  }
}

inline void accumulate(DType dtype, const AccumulateArguments& arguments,
                       CandidateBuffer& candidates) {
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    if (arguments.residual != nullptr)
      return accumulate_piece<Element, true>(arguments, candidates);
    return accumulate_piece<Element, false>(arguments, candidates);
  });
}

template <class Element>
FASTCOMM_LOOPS_TARGET void write_elements(const float* __restrict__ sum, float factor, bool streams,
                                          Element* __restrict__ out, int64_t num_elements) {
  int64_t first = 0;
  if (streams) {
    alignas(64) Element stash[kChunk];
    for (; first + kChunk <= num_elements; first += kChunk) {
      for (int i = 0; i < kChunk; ++i) stash[i] = to_result<Element>(sum[first + i] * factor);
      stream(stash, out + first, kChunk);
    }
    FASTCOMM_LOOPS_STREAM_END();
  }
  for (int64_t i = first; i < num_elements; ++i) out[i] = to_result<Element>(sum[i] * factor);
}

inline void write(DType dtype, const float* sum, float factor, bool streams, void* out,
                  int64_t num_elements) {
  visit_dtype(dtype, [&](auto element) {
    write_elements(sum, factor, streams, static_cast<decltype(element)*>(out), num_elements);
  });
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
