// The top-k loops for AVX-512.
#include "codecs/sparse/kernels.h"

#if FASTCOMM_X86
#include "core/loops_avx512.h"

namespace fastcomm::avx512 {

FASTCOMM_LOOPS_TARGET inline void append_candidates(const float* stash, int count,
                                                    uint32_t first_index, uint32_t threshold,
                                                    CandidateBuffer& candidates) {
  const __m512i magnitude_mask = _mm512_set1_epi32(static_cast<int>(kMagnitudeMask));
  const __m512i thresholds = _mm512_set1_epi32(static_cast<int>(threshold));
  const __m512i lane_index =
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  // Groups of which most have a candidate: the branch is predictable.
  constexpr int kVectors = 8;
  int i = 0;
  for (; i + 16 * kVectors <= count; i += 16 * kVectors) {
    __mmask16 selected[kVectors];
    __mmask16 any = 0;
    for (int vector = 0; vector < kVectors; ++vector) {
      const __m512i bits = _mm512_load_si512(stash + i + 16 * vector);
      selected[vector] =
          _mm512_cmpge_epu32_mask(_mm512_and_si512(bits, magnitude_mask), thresholds);
      any = static_cast<__mmask16>(any | selected[vector]);
    }
    if (any == 0) continue;
    int64_t num_found = candidates.count;
    if (num_found > candidates.capacity) {  // only counted from here on
      for (const __mmask16 lanes : selected) num_found += __builtin_popcount(lanes);
      candidates.count = num_found;
      continue;
    }
    uint32_t* indices = candidates.indices;
    float* values = candidates.values;
    for (int vector = 0; vector < kVectors; ++vector) {
      // Compress in a register, then one full store: much faster than a compressing store.
      const __m512i bits = _mm512_load_si512(stash + i + 16 * vector);
      const auto first = static_cast<int>(first_index) + i + 16 * vector;
      const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(first), lane_index);
      _mm512_storeu_si512(indices + num_found,
                          _mm512_maskz_compress_epi32(selected[vector], index));
      _mm512_storeu_si512(values + num_found, _mm512_maskz_compress_epi32(selected[vector], bits));
      num_found += __builtin_popcount(selected[vector]);
    }
    candidates.count = num_found;
  }
  append_candidates_one_by_one(stash + i, count - i, first_index + static_cast<uint32_t>(i),
                               threshold, candidates);
}

}  // namespace fastcomm::avx512

#include "codecs/sparse/loops.inl"

namespace fastcomm {
TopKKernels topk_kernels_avx512() { return {avx512::accumulate, avx512::write}; }
}  // namespace fastcomm
#endif
