#pragma once
// fp32: the values themselves. Nothing is left out, so that the residual is zero.

#include "codecs/dense/concept.h"
#include "core/dtype.h"

namespace fastcomm {

struct Fp32 {
  static constexpr std::string_view kName = "fp32";
  static constexpr uint8_t kWireId = 32;
  static constexpr int kBlockElements = 512;
  static constexpr int kElementsPerUnit = 1;
  static constexpr ScaledBy kScaledBy = ScaledBy::kNothing;
  static constexpr bool kIsRotated = false;
  using Unit = uint32_t;

  FASTCOMM_HOST_DEVICE static Quantized quantize(float value, BlockScale) {
    const float sent = with_one_nan(value);
    return {float_bits(sent), sent};
  }
  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale) {
    return bits_float(code);
  }
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Fp32);
