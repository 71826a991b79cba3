#pragma once
// What loops are compiled with for any CPU; on x86-64, SSE2; see loops.inl. One of these headers
// for each source file.

#include <array>
#include <cstring>

#include "core/isa.h"

#define FASTCOMM_LOOPS_NAMESPACE baseline
#define FASTCOMM_LOOPS_TARGET
#define FASTCOMM_LOOPS_LANES 4

#if FASTCOMM_X86
#include <emmintrin.h>
#define FASTCOMM_LOOPS_STREAM(to, vector) _mm_stream_si128(reinterpret_cast<__m128i*>(to), vector)
#define FASTCOMM_LOOPS_STREAM_END() _mm_sfence()
namespace fastcomm::baseline {
using StreamVector = __m128i;
}
#else
#define FASTCOMM_LOOPS_STREAM(to, vector) std::memcpy(to, &vector, sizeof vector)
#define FASTCOMM_LOOPS_STREAM_END()
namespace fastcomm::baseline {
using StreamVector = std::array<std::byte, 16>;
}
#endif
