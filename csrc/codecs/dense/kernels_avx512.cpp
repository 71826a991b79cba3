// The dense loops for AVX-512.
#include "core/isa.h"

#if FASTCOMM_X86
#include "core/loops_avx512.h"
// The loops come after what they are compiled with.
#include "codecs/dense/loops.inl"

namespace fastcomm {
DenseKernelTable dense_kernels_avx512() { return avx512::kernel_table(); }
}  // namespace fastcomm
#endif
