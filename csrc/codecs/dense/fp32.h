#pragma once
// fp32: the values themselves. Nothing is left out, so that the residual is zero.

#include "codecs/dense/concept.h"

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
    // One NaN for all processors, which differ in the sign of theirs.
    const uint32_t code = magnitude_bits(value) > kInfinityBits ? 0x7fc00000u : float_bits(value);
    return {code, bits_float(code)};
  }
  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale) {
    return bits_float(code);
  }
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Fp32);
