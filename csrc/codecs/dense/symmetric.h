#pragma once
// The element math shared by the symmetric integer codecs (int8, int4).
//
// code = round(value / scale), -kLevels <= code <= kLevels. The scale is the block's largest
// magnitude / kLevels, rounded up to bf16: with its 8 significant bits, code * scale is exact in
// f32, and so is the residual value - code * scale.

#include <cstdint>

#include "codecs/dense/concept.h"

namespace fastcomm {

template <int kBits>
struct SymmetricMath {
  static constexpr ScaledBy kScaledBy = ScaledBy::kLargestMagnitude;
  static constexpr bool kIsRotated = false;
  static constexpr int kLevels = (1 << (kBits - 1)) - 1;
  static constexpr uint32_t kCodeMask = (1u << kBits) - 1;

  FASTCOMM_HOST_DEVICE static uint16_t wire_scale(float largest_magnitude) {
    const uint32_t scale = float_bits(largest_magnitude * (1.0f / kLevels));
    return static_cast<uint16_t>((scale + 0xffffu) >> 16);
  }

  FASTCOMM_HOST_DEVICE static Quantized quantize(float value, BlockScale scale) {
    // Adding 1.5 * 2^23 rounds half to even and leaves the integer, in two's complement, in the
    // low bits: no conversion instruction, the same on every instruction set.
    constexpr float kRounder = 12582912.0f;
    const float rounded = value * scale.inverse + kRounder;
    return {float_bits(rounded) & kCodeMask, (rounded - kRounder) * scale.scale};
  }

  // Rounds up with the probability of the fraction, in steps of 2^-15.
  FASTCOMM_HOST_DEVICE static Quantized quantize_stochastic(float value, BlockScale scale,
                                                            uint32_t random) {
    constexpr int32_t kLargest = kLevels << 15;
    // 1.5 * 2^8: the integer that stays in the low bits counts 2^-15ths.
    constexpr float kRounder = 384.0f;
    constexpr int32_t kRounderBits = 0x43c00000;
    const float shifted = value * scale.inverse + kRounder;
    // The reciprocal of the scale is rounded, so that the quotient may exceed the levels a little.
    int32_t fixed = static_cast<int32_t>(float_bits(shifted)) - kRounderBits;
    fixed = fixed < kLargest ? fixed : kLargest;
    fixed = fixed > -kLargest ? fixed : -kLargest;
    const int32_t level = (fixed + static_cast<int32_t>(random >> 17)) >> 15;
    return {static_cast<uint32_t>(level) & kCodeMask, static_cast<float>(level) * scale.scale};
  }

  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale scale) {
    // Sign extension of a kBits-bit integer.
    const int32_t value = static_cast<int32_t>(code << (32 - kBits)) >> (32 - kBits);
    return static_cast<float>(value) * scale.scale;
  }
};

}  // namespace fastcomm
