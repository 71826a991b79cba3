// The top-k loops for AVX2.
#include "codecs/sparse/kernels.h"

#if FASTCOMM_X86
#include "core/loops_avx2.h"

namespace fastcomm::avx2 {

FASTCOMM_LOOPS_TARGET inline void append_candidates(const float* stash, int count,
                                                    uint32_t first_index, uint32_t threshold,
                                                    CandidateBuffer& candidates) {
  const __m256i magnitude_mask = _mm256_set1_epi32(static_cast<int>(kMagnitudeMask));
  const __m256i below = _mm256_set1_epi32(static_cast<int>(threshold - 1));
  int i = 0;
  for (; i + 32 <= count; i += 32) {
    uint32_t lanes = 0;
    for (int vector = 0; vector < 4; ++vector) {
      const __m256i bits = _mm256_and_si256(
          _mm256_load_si256(reinterpret_cast<const __m256i*>(stash + i + 8 * vector)),
          magnitude_mask);
      // Magnitudes are non-negative as signed integers, so that a signed comparison serves.
      const __m256i selected = _mm256_cmpgt_epi32(bits, below);
      lanes |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(selected)))
               << (8 * vector);
    }
    for (; lanes != 0; lanes &= lanes - 1) {
      const int lane = i + __builtin_ctz(lanes);
      append_one(stash[lane], first_index + static_cast<uint32_t>(lane), candidates);
    }
  }
  append_candidates_one_by_one(stash + i, count - i, first_index + static_cast<uint32_t>(i),
                               threshold, candidates);
}

}  // namespace fastcomm::avx2

#include "codecs/sparse/loops.inl"

namespace fastcomm {
TopKKernels topk_kernels_avx2() { return {avx2::accumulate, avx2::write}; }
}  // namespace fastcomm
#endif
