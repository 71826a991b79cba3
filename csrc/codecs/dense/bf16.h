#pragma once
// bf16: the upper half of an f32, rounded half to even; a finite value never becomes Inf.

#include "codecs/dense/concept.h"
#include "core/dtype.h"

namespace fastcomm {

struct Bf16 {
  static constexpr std::string_view kName = "bf16";
  static constexpr uint8_t kWireId = 16;
  static constexpr int kBlockElements = 512;
  static constexpr int kElementsPerUnit = 1;
  static constexpr ScaledBy kScaledBy = ScaledBy::kNothing;
  static constexpr bool kIsRotated = false;
  using Unit = uint16_t;

  FASTCOMM_HOST_DEVICE static Quantized quantize(float value, BlockScale) {
    const uint16_t code = float_to_bf16(value);
    return {code, bf16_to_float(code)};
  }
  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale) {
    return bf16_to_float(static_cast<uint16_t>(code));
  }
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Bf16);
