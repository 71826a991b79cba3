#pragma once
// What loops are compiled with for AVX-512; see loops.inl. One of these headers for each source
// file.

#include <immintrin.h>

#include "core/isa.h"

#define FASTCOMM_LOOPS_NAMESPACE avx512
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX512
#define FASTCOMM_LOOPS_LANES 16
#define FASTCOMM_LOOPS_STREAM(to, vector) \
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), vector)
#define FASTCOMM_LOOPS_STREAM_END() _mm_sfence()

namespace fastcomm::avx512 {
using StreamVector = __m512i;
}
