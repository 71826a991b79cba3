// The dense loops for AVX2.
#include "core/isa.h"

#if FASTCOMM_X86
#include "core/loops_avx2.h"
// The loops come after what they are compiled with.
#include "codecs/dense/loops.inl"

namespace fastcomm {
DenseKernelTable dense_kernels_avx2() { return avx2::kernel_table(); }
}  // namespace fastcomm
#endif
