// The dense loops for any CPU; on x86-64, for SSE2.
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "codecs/dense/codecs.h"
#include "codecs/dense/kernels.h"
#include "codecs/payload.h"

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

#define FASTCOMM_LOOPS_NAMESPACE baseline
#define FASTCOMM_LOOPS_TARGET
#define FASTCOMM_LOOPS_LANES 4

#include "codecs/dense/loops.inl"

namespace fastcomm {
DenseKernelTable dense_kernels_baseline() { return baseline::kernel_table(); }
}  // namespace fastcomm
