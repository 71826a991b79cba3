#pragma once
// int2: 2 bits per element of a rotated block, one bf16 scale per 256 elements (0.258 bytes per
// element).
//
// The levels are -3, -1, 1 and 3 times the scale. Rotated values are nearly Gaussian, and for these
// the four evenly spaced levels with the smallest error (Max, "Quantizing for minimum distortion",
// 1960, table II) lie at 0.498 and 1.494 standard deviations, 0.624 and 1.872 mean magnitudes.
// code = sign << 1 | (3 rather than 1).

#include "codecs/dense/concept.h"
#include "core/dtype.h"

namespace fastcomm {

struct Int2 {
  static constexpr std::string_view kName = "int2";
  static constexpr uint8_t kWireId = 2;
  static constexpr int kBlockElements = 256;
  static constexpr int kElementsPerUnit = 4;
  static constexpr ScaledBy kScaledBy = ScaledBy::kMeanMagnitude;
  static constexpr bool kIsRotated = true;
  using Unit = uint8_t;

  FASTCOMM_HOST_DEVICE static uint16_t wire_scale(float mean_magnitude) {
    return float_to_bf16(mean_magnitude * 0.624f);
  }

  FASTCOMM_HOST_DEVICE static Quantized quantize(float value, BlockScale scale) {
    const float threshold = scale.scale + scale.scale;
    const uint32_t is_large = magnitude_bits(value) >= float_bits(threshold) ? 1u : 0u;
    const uint32_t code = (float_bits(value) >> 31) << 1 | is_large;
    return {code, dequantize(code, scale)};
  }

  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale scale) {
    const float level = (code & 1u) != 0 ? 3.0f * scale.scale : scale.scale;
    return bits_float(float_bits(level) ^ ((code >> 1) << 31));
  }
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Int2);
