#pragma once
// The loops of momentum correction that depend on the instruction set.

#include <cstdint>

#include "codecs/velocity/element.h"
#include "core/isa.h"

namespace fastcomm {

struct VelocityArguments {
  void* gradient;  // num_elements elements of the given dtype
  float* velocity;
  float* residual;
  int64_t num_elements;
  Momentum momentum;
};

// accumulate_velocity_element() of each.
using VelocityKernel = void (*)(DType, const VelocityArguments&);
VelocityKernel velocity_kernel_baseline();
VelocityKernel velocity_kernel_avx2();
VelocityKernel velocity_kernel_avx512();
VelocityKernel velocity_kernel(Isa isa);

}  // namespace fastcomm
