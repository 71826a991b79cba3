// The dense loops for any CPU; on x86-64, SSE2.
#include "core/loops_baseline.h"
// The loops come after what they are compiled with.
#include "codecs/dense/loops.inl"

namespace fastcomm {
DenseKernelTable dense_kernels_baseline() { return baseline::kernel_table(); }
}  // namespace fastcomm
