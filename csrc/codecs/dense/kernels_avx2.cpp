// The dense loops for AVX2.
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "codecs/dense/codecs.h"
#include "codecs/dense/kernels.h"
#include "codecs/payload.h"

#if FASTCOMM_X86
#include <immintrin.h>

#define FASTCOMM_LOOPS_NAMESPACE avx2
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX2
#define FASTCOMM_LOOPS_LANES 8
#define FASTCOMM_LOOPS_STREAM(to, vector) \
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), vector)
#define FASTCOMM_LOOPS_STREAM_END() _mm_sfence()
namespace fastcomm::avx2 {
using StreamVector = __m256i;
}

#include "codecs/dense/loops.inl"

namespace fastcomm {
DenseKernelTable dense_kernels_avx2() { return avx2::kernel_table(); }
}  // namespace fastcomm
#endif
