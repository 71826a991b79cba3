#include "core/stream_copy.h"

#include <cstring>

#include "core/isa.h"

#if FASTCOMM_X86
#include <immintrin.h>
#endif

namespace fastcomm {
namespace {

// Copies one by one until `to` is aligned to `alignment` bytes; returns how many.
int64_t copy_head(const float* from, float* to, int64_t num_elements, uintptr_t alignment) {
  int64_t i = 0;
  for (; i < num_elements && reinterpret_cast<uintptr_t>(to + i) % alignment != 0; ++i) {
    to[i] = from[i];
  }
  return i;
}

#if FASTCOMM_X86

FASTCOMM_TARGET_AVX512 int64_t stream_avx512(const float* from, float* to, int64_t num_elements) {
  int64_t i = copy_head(from, to, num_elements, 64);
  for (; i + 16 <= num_elements; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
  _mm_sfence();
  return i;
}

int64_t stream_sse2(const float* from, float* to, int64_t num_elements) {
  int64_t i = copy_head(from, to, num_elements, 16);
  for (; i + 4 <= num_elements; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
  _mm_sfence();
  return i;
}

#endif

}  // namespace

void stream_copy(const float* from, float* to, int64_t num_elements) {
  int64_t done = 0;
#if FASTCOMM_X86
  done = supported_isas().back() == Isa::kAvx512 ? stream_avx512(from, to, num_elements)
                                                 : stream_sse2(from, to, num_elements);
#endif
  std::memcpy(to + done, from + done, static_cast<size_t>(num_elements - done) * sizeof(float));
}

}  // namespace fastcomm
