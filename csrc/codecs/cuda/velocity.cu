// Momentum correction: an element for each thread at a time.

#include "codecs/cuda/velocity.h"
#include "codecs/velocity/velocity.h"

namespace fastcomm {
namespace {

constexpr int kThreads = 256;

template <class Element, bool kIsNesterov>
__global__ void __launch_bounds__(kThreads)
    accumulate_velocity_kernel(float factor, Element* __restrict__ gradient,
                               float* __restrict__ velocity, float* __restrict__ residual,
                               int64_t num_elements) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < num_elements; i += stride) {
    accumulate_velocity_element<kIsNesterov>(factor, gradient[i], velocity[i], residual[i]);
  }
}

}  // namespace

void enqueue_accumulate_velocity(const BucketMemory& memory, const Momentum& momentum,
                                 cudaStream_t stream) {
  if (memory.num_elements == 0) return;
  check_velocity(memory);
  const int64_t num_blocks = (memory.num_elements + kThreads - 1) / kThreads;
  visit_dtype(memory.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto kernel = momentum.is_nesterov ? accumulate_velocity_kernel<Element, true>
                                             : accumulate_velocity_kernel<Element, false>;
    const int64_t most = num_resident_blocks(kernel, kThreads);
    launch(kernel, num_blocks < most ? num_blocks : most, kThreads, stream, momentum.factor,
           static_cast<Element*>(memory.gradient), memory.velocity, memory.residual,
           memory.num_elements);
  });
}

}  // namespace fastcomm
