// The dense loops for AVX-512.
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "codecs/dense/codecs.h"
#include "codecs/dense/kernels.h"
#include "codecs/payload.h"

#if FASTCOMM_X86
#include <immintrin.h>

#define FASTCOMM_LOOPS_NAMESPACE avx512
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX512
#define FASTCOMM_LOOPS_LANES 16
#define FASTCOMM_LOOPS_STREAM(to, vector) \
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), vector)
#define FASTCOMM_LOOPS_STREAM_END() _mm_sfence()
namespace fastcomm::avx512 {
using StreamVector = __m512i;
}

#include "codecs/dense/loops.inl"

namespace fastcomm {
DenseKernelTable dense_kernels_avx512() { return avx512::kernel_table(); }
}  // namespace fastcomm
#endif
