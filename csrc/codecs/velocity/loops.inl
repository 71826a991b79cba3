// The loop of momentum correction for one instruction set. kernels_<isa>.cpp includes this file
// after core/loops_<isa>.h.

#include "codecs/velocity/kernels.h"
#include "core/loops.inl"

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

template <class Element, bool kIsNesterov>
FASTCOMM_LOOPS_TARGET void accumulate_elements(float factor, Element* __restrict__ gradient,
                                               float* __restrict__ velocity,
                                               float* __restrict__ residual, int64_t num_elements) {
  for (int64_t i = 0; i < num_elements; ++i) {
    accumulate_velocity_element<kIsNesterov>(factor, gradient[i], velocity[i], residual[i]);
  }
}

inline void accumulate_velocity(DType dtype, const VelocityArguments& arguments) {
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    const auto loop = arguments.momentum.is_nesterov ? accumulate_elements<Element, true>
                                                     : accumulate_elements<Element, false>;
    loop(arguments.momentum.factor, static_cast<Element*>(arguments.gradient), arguments.velocity,
         arguments.residual, arguments.num_elements);
  });
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
