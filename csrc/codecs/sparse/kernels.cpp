#include "codecs/sparse/kernels.h"

#include <cstring>

#if FASTCOMM_X86
#include <immintrin.h>
#endif

namespace fastcomm {
namespace {

// The compaction: appends stash[i] and its index wherever |stash[i]| >= threshold. Written for
// each instruction set; all append the same entries in the same order.

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

inline void append_candidates_baseline(const float* stash, int count, uint32_t first_index,
                                       uint32_t threshold, CandidateBuffer& candidates) {
  for (int i = 0; i < count; ++i) {
    if (magnitude_bits(stash[i]) >= threshold) {
      append_one(stash[i], first_index + static_cast<uint32_t>(i), candidates);
    }
  }
}

#if FASTCOMM_X86

FASTCOMM_TARGET_AVX2 inline void append_candidates_avx2(const float* stash, int count,
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
  append_candidates_baseline(stash + i, count - i, first_index + static_cast<uint32_t>(i),
                             threshold, candidates);
}

FASTCOMM_TARGET_AVX512 inline void append_candidates_avx512(const float* stash, int count,
                                                            uint32_t first_index,
                                                            uint32_t threshold,
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
  append_candidates_baseline(stash + i, count - i, first_index + static_cast<uint32_t>(i),
                             threshold, candidates);
}

#endif

}  // namespace
}  // namespace fastcomm

#define FASTCOMM_LOOPS_NAMESPACE baseline_topk
#define FASTCOMM_LOOPS_TARGET
#define FASTCOMM_APPEND_CANDIDATES append_candidates_baseline
#include "codecs/sparse/loops.inl"
#undef FASTCOMM_LOOPS_NAMESPACE
#undef FASTCOMM_LOOPS_TARGET
#undef FASTCOMM_APPEND_CANDIDATES

#if FASTCOMM_X86
#define FASTCOMM_LOOPS_NAMESPACE avx2_topk
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX2
#define FASTCOMM_APPEND_CANDIDATES append_candidates_avx2
#include "codecs/sparse/loops.inl"
#undef FASTCOMM_LOOPS_NAMESPACE
#undef FASTCOMM_LOOPS_TARGET
#undef FASTCOMM_APPEND_CANDIDATES

#define FASTCOMM_LOOPS_NAMESPACE avx512_topk
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX512
#define FASTCOMM_APPEND_CANDIDATES append_candidates_avx512
#include "codecs/sparse/loops.inl"
#undef FASTCOMM_LOOPS_NAMESPACE
#undef FASTCOMM_LOOPS_TARGET
#undef FASTCOMM_APPEND_CANDIDATES
#endif

namespace fastcomm {

const TopKKernels& topk_kernels(Isa isa) {
  static const TopKKernels kernels[kNumIsas] = {
      {baseline_topk::accumulate, baseline_topk::write},
#if FASTCOMM_X86
      {avx2_topk::accumulate, avx2_topk::write},
      {avx512_topk::accumulate, avx512_topk::write},
#endif
  };
  return kernels[static_cast<int>(isa)];
}

}  // namespace fastcomm
