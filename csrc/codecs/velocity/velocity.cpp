#include "codecs/velocity/velocity.h"

#include "codecs/velocity/kernels.h"
#include "core/check.h"

namespace fastcomm {
namespace {

// What one thread takes at a time: enough to hide the hand-over.
constexpr int64_t kTaskElements = int64_t{1} << 16;

}  // namespace

VelocityKernel velocity_kernel(Isa isa) {
  static const VelocityKernel kernels[kNumIsas] = {
      velocity_kernel_baseline(),
#if FASTCOMM_X86
      velocity_kernel_avx2(),
      velocity_kernel_avx512(),
#endif
  };
  return kernels[static_cast<int>(isa)];
}

void check_velocity(const BucketMemory& memory) {
  FASTCOMM_CHECK(memory.velocity != nullptr && memory.residual != nullptr,
                 "a velocity needs a residual, which its values wait in");
}

void accumulate_velocity(const BucketMemory& memory, const Momentum& momentum,
                         ThreadPool* threads) {
  if (memory.num_elements == 0) return;
  check_velocity(memory);
  const VelocityKernel kernel = velocity_kernel(active_isa());
  run_in_parts(threads, memory.num_elements, kTaskElements, [&](int64_t begin, int64_t end) {
    kernel(memory.dtype, {memory.gradient_at(begin), memory.velocity_at(begin),
                          memory.residual_at(begin), end - begin, momentum});
  });
}

}  // namespace fastcomm
