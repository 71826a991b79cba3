#pragma once
// sign: 1 bit per element of a rotated block, one bf16 scale per 256 elements (0.133 bytes per
// element). 1-bit SGD (Seide et al., 2014) with the scale of Karimireddy et al., "Error feedback
// fixes SignSGD", 2019: the mean magnitude, which leaves the smallest residual.

#include "codecs/dense/concept.h"
#include "core/dtype.h"

namespace fastcomm {

struct Sign {
  static constexpr std::string_view kName = "sign";
  static constexpr uint8_t kWireId = 10;
  static constexpr int kBlockElements = 256;
  static constexpr int kElementsPerUnit = 8;
  static constexpr ScaledBy kScaledBy = ScaledBy::kMeanMagnitude;
  static constexpr bool kIsRotated = true;
  using Unit = uint8_t;

  FASTCOMM_HOST_DEVICE static uint16_t wire_scale(float mean_magnitude) {
    return float_to_bf16(mean_magnitude);
  }

  FASTCOMM_HOST_DEVICE static Quantized quantize(float value, BlockScale scale) {
    const uint32_t code = float_bits(value) >> 31;
    return {code, dequantize(code, scale)};
  }

  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale scale) {
    return bits_float(float_bits(scale.scale) ^ (code << 31));
  }
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Sign);
