// The top-k loops for one instruction set; included once for each, like dense/loops.inl, with
//   FASTCOMM_LOOPS_NAMESPACE, FASTCOMM_LOOPS_TARGET  as there
//   FASTCOMM_APPEND_CANDIDATES                       the compaction of this instruction set
//
// The bucket is walked in chunks that stay in the L1 cache: a plain loop that every compiler
// vectorizes accumulates into a stash, then the compaction, the one place where hand-written
// intrinsics pay, picks the candidates from the stash.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

template <class Element, bool kHasResidual>
FASTCOMM_LOOPS_TARGET void accumulate_piece(const AccumulateArguments& arguments,
                                            CandidateBuffer& candidates) {
  constexpr int kChunk = 512;
  alignas(64) float stash[kChunk];
  const auto* gradient = static_cast<const Element*>(arguments.gradient);
  for (int64_t first = 0; first < arguments.num_elements; first += kChunk) {
    const int64_t left = arguments.num_elements - first;
    const int count = left < kChunk ? static_cast<int>(left) : kChunk;
    const Element* __restrict__ in = gradient + first;
    uint32_t absmax = 0;
    if constexpr (kHasResidual) {
      float* __restrict__ residual = arguments.residual + first;
      for (int i = 0; i < count; ++i) {
        const float value = to_float(in[i]) + residual[i];
        const float previous = residual[i];
        residual[i] = is_finite(value) ? value : previous;
        stash[i] = value;
        absmax = magnitude_bits(value) > absmax ? magnitude_bits(value) : absmax;
      }
    } else {
      for (int i = 0; i < count; ++i) {
        const float value = to_float(in[i]);
        stash[i] = value;
        absmax = magnitude_bits(value) > absmax ? magnitude_bits(value) : absmax;
      }
    }
    if (absmax >= kInfinityBits) {
      for (int i = 0; i < count; ++i) {
        if (is_finite(stash[i])) continue;
        candidates.non_finite->push_back(
            {arguments.first_index + static_cast<uint32_t>(first + i), stash[i]});
      }
    }
    FASTCOMM_APPEND_CANDIDATES(stash, count, arguments.first_index + static_cast<uint32_t>(first),
                               arguments.threshold_bits, candidates);
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
FASTCOMM_LOOPS_TARGET void write_elements(const float* __restrict__ sum, float factor,
                                          Element* __restrict__ out, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; ++i) out[i] = from_float<Element>(sum[i] * factor);
}

inline void write(DType dtype, const float* sum, float factor, void* out, int64_t num_elements) {
  visit_dtype(dtype, [&](auto element) {
    write_elements(sum, factor, static_cast<decltype(element)*>(out), num_elements);
  });
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
