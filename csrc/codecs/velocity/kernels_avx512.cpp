// The loop of momentum correction for AVX-512.
#include "core/isa.h"

#if FASTCOMM_X86
#include "core/loops_avx512.h"
// The loop comes after what it is compiled with.
#include "codecs/velocity/loops.inl"

namespace fastcomm {
VelocityKernel velocity_kernel_avx512() { return avx512::accumulate_velocity; }
}  // namespace fastcomm
#endif
