#pragma once
// What loops are compiled with for AVX2; see loops.inl. One of these headers for each source
// file.

#include <immintrin.h>

#include "core/isa.h"

#define FASTCOMM_LOOPS_NAMESPACE avx2
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX2
#define FASTCOMM_LOOPS_LANES 8
#define FASTCOMM_LOOPS_STREAM(to, vector) \
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), vector)
#define FASTCOMM_LOOPS_STREAM_END() _mm_sfence()

namespace fastcomm::avx2 {
using StreamVector = __m256i;
}
