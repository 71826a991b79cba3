#pragma once
// Momentum correction of one element, on host and device.
//
// With error feedback, momentum belongs before the codec: a value that waits in the residual for
// many steps would else miss the momentum that it had gathered by then (Lin et al., Deep Gradient
// Compression, ICLR 2018, section 3.1).

#include "core/dtype.h"
#include "core/host_device.h"

namespace fastcomm {

struct Momentum {
  float factor = 0;
  bool is_nesterov = false;
};

// 2^-100. Smaller velocities become zero: those of elements without gradients would else end as
// denormals, which never decay to zero and are slow on some processors.
inline constexpr uint32_t kSmallestVelocityBits = 0x0d800000u;

FASTCOMM_HOST_DEVICE float select_float(bool condition, float a, float b) {
  return bits_float(select_word(condition, float_bits(a), float_bits(b)));
}

// velocity = factor * velocity + gradient; what is to be sent, velocity or (Nesterov) gradient +
// factor * velocity, moves into the residual, which has more digits than a narrow gradient, and
// leaves a gradient of 0. Where anything overflows or is not finite, velocity and residual stay as
// they are, and the gradient becomes what is to be sent: all ranks shall see it.
template <bool kIsNesterov, class Element>
FASTCOMM_HOST_DEVICE void accumulate_velocity_element(float factor, Element& gradient,
                                                      float& velocity, float& residual) {
  const float value = to_float(gradient);
  const float next_velocity = factor * velocity + value;
  const float update = kIsNesterov ? value + factor * next_velocity : next_velocity;
  const float next_residual = residual + update;
  // Not &&: a branch would keep compilers from vectorizing.
  const bool is_accumulated =
      is_finite(next_velocity) & is_finite(update) & is_finite(next_residual);
  const bool is_kept = magnitude_bits(next_velocity) >= kSmallestVelocityBits;
  velocity = select_float(is_accumulated, select_float(is_kept, next_velocity, 0.0f), velocity);
  residual = select_float(is_accumulated, next_residual, residual);
  gradient = to_result<Element>(select_float(is_accumulated, 0.0f, update));
}

}  // namespace fastcomm
