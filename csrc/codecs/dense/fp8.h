#pragma once
// fp8: e4m3 (Micikevicius et al., "FP8 formats for deep learning", 2022, section 3), scaled so that
// the largest magnitude of a block becomes its largest number, 448. One bf16 scale per 512 elements
// (1.004 bytes per element).
//
// The scale is rounded up to bf16: with 8 significant bits there and 4 in e4m3, code * scale is
// exact in f32, and so is the residual.

#include "codecs/dense/small_float.h"

namespace fastcomm {

struct Fp8 {
  static constexpr std::string_view kName = "fp8";
  static constexpr uint8_t kWireId = 9;
  static constexpr int kBlockElements = 512;
  static constexpr int kElementsPerUnit = 1;
  static constexpr ScaledBy kScaledBy = ScaledBy::kLargestMagnitude;
  static constexpr bool kIsRotated = false;
  using Unit = uint8_t;
  using E4m3 = SmallFloat<3, -6>;

  FASTCOMM_HOST_DEVICE static uint16_t wire_scale(float largest_magnitude) {
    const uint32_t scale = float_bits(largest_magnitude * (1.0f / 448.0f));
    return static_cast<uint16_t>((scale + 0xffffu) >> 16);
  }

  FASTCOMM_HOST_DEVICE static Quantized quantize(float value, BlockScale scale) {
    constexpr uint32_t kLargest = 0x43e00000u;  // 448
    const float scaled = value * scale.inverse;
    const uint32_t sign = float_bits(scaled) & ~kMagnitudeMask;
    // The reciprocal of the scale is rounded: the quotient may exceed 448 a little.
    const uint32_t magnitude = magnitude_bits(scaled);
    const Quantized rounded = E4m3::round(magnitude < kLargest ? magnitude : kLargest);
    return {rounded.code | sign >> 24, bits_float(float_bits(rounded.value) | sign) * scale.scale};
  }

  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale scale) {
    const uint32_t magnitude = float_bits(E4m3::value(code & 0x7fu));
    return bits_float(magnitude | (code & 0x80u) << 24) * scale.scale;
  }
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Fp8);
