#pragma once
// The element math shared by the symmetric integer codecs (int8, int4).
//
// code = round_half_even(value / scale), -kLevels <= code <= kLevels. The scale is the block's
// largest magnitude / kLevels, rounded up to bf16: with its 8 significant bits, code * scale is
// exact in f32, and so is the residual value - code * scale.

#include <cstdint>

#include "codecs/dense/concept.h"

namespace fastcomm {

template <int kBits>
struct SymmetricMath {
  static constexpr bool kHasScale = true;
  static constexpr int kLevels = (1 << (kBits - 1)) - 1;

  FASTCOMM_HOST_DEVICE static uint16_t wire_scale(uint32_t absmax_bits) {
    const uint32_t scale = float_bits(bits_float(absmax_bits) * (1.0f / kLevels));
    return static_cast<uint16_t>((scale + 0xffffu) >> 16);
  }

  FASTCOMM_HOST_DEVICE static uint32_t quantize(float value, BlockScale scale) {
    // Adding 1.5 * 2^23 rounds half to even and leaves the integer, in two's complement, in the
    // low bits: no conversion instruction, the same on every instruction set.
    const float rounded = value * scale.inverse + 12582912.0f;
    return float_bits(rounded) & ((1u << kBits) - 1);
  }

  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale scale) {
    // Sign extension of a kBits-bit integer.
    const int32_t value = static_cast<int32_t>(code << (32 - kBits)) >> (32 - kBits);
    return static_cast<float>(value) * scale.scale;
  }
};

}  // namespace fastcomm
