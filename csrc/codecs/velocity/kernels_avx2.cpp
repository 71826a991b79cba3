// The loop of momentum correction for AVX2.
#include "core/isa.h"

#if FASTCOMM_X86
#include "core/loops_avx2.h"
// The loop comes after what it is compiled with.
#include "codecs/velocity/loops.inl"

namespace fastcomm {
VelocityKernel velocity_kernel_avx2() { return avx2::accumulate_velocity; }
}  // namespace fastcomm
#endif
