#pragma once
// fp16: IEEE half precision, rounded half to even; a finite value never becomes Inf. Values below
// 6e-8 are sent as zero and stay in the residual.

#include "codecs/dense/small_float.h"
#include "core/dtype.h"

namespace fastcomm {

struct Fp16 {
  static constexpr std::string_view kName = "fp16";
  static constexpr uint8_t kWireId = 17;
  static constexpr int kBlockElements = 512;
  static constexpr int kElementsPerUnit = 1;
  static constexpr ScaledBy kScaledBy = ScaledBy::kNothing;
  static constexpr bool kIsRotated = false;
  using Unit = uint16_t;
  using Half = SmallFloat<10, -14>;

  FASTCOMM_HOST_DEVICE static Quantized quantize(float value, BlockScale) {
    constexpr uint32_t kLargest = 0x477fe000u;  // 65504
    const uint32_t sign = float_bits(value) & ~kMagnitudeMask;
    const uint32_t magnitude = magnitude_bits(value);
    const Quantized rounded = Half::round(magnitude < kLargest ? magnitude : kLargest);
    const uint32_t finite_value = float_bits(rounded.value) | sign;
    const bool is_finite = magnitude < kInfinityBits;
    const uint32_t code = select_word(is_finite, rounded.code, 0x7c00u) | sign >> 16;
    // One NaN for all processors, which differ in the sign of theirs.
    return {select_word(magnitude > kInfinityBits, 0x7e00u, code),
            bits_float(select_word(is_finite, finite_value, float_bits(value)))};
  }
  FASTCOMM_HOST_DEVICE static float dequantize(uint32_t code, BlockScale) {
    return f16_to_float(static_cast<uint16_t>(code));
  }
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Fp16);
