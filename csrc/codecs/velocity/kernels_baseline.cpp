// The loop of momentum correction for any CPU; on x86-64, SSE2.
#include "core/loops_baseline.h"
// The loop comes after what it is compiled with.
#include "codecs/velocity/loops.inl"

namespace fastcomm {
VelocityKernel velocity_kernel_baseline() { return baseline::accumulate_velocity; }
}  // namespace fastcomm
