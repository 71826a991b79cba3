#pragma once
// Rounding to a small float format (fp8, fp16), half to even, without a branch or a conversion
// instruction.
//
// A magnitude in [2^e, 2^(e+1)) is rounded to a multiple of its *last digit* 2^(e - m), m being the
// number of mantissa bits; below the smallest normal exponent, the last digit stays the same.
// Adding the *rounder* 2^(e - m + 23), whose own last digit in f32 is that one, rounds, and leaves
// the number of digits in the low bits.

#include <cstdint>

#include "codecs/dense/concept.h"

namespace fastcomm {

template <int kMantissaBits, int kSmallestExponent>
struct SmallFloat {
  static constexpr uint32_t kSmallestBits = static_cast<uint32_t>(127 + kSmallestExponent) << 23;
  static constexpr uint32_t kRounderExponent = static_cast<uint32_t>(23 - kMantissaBits) << 23;

  // `magnitude`: the bits of a float that is not negative and not above the largest finite one.
  FASTCOMM_HOST_DEVICE static Quantized round(uint32_t magnitude) {
    const uint32_t exponent = magnitude & kInfinityBits;
    const uint32_t exponent_bits = exponent > kSmallestBits ? exponent : kSmallestBits;
    const float rounder = bits_float(exponent_bits + kRounderExponent);
    const float rounded = bits_float(magnitude) + rounder;
    const uint32_t digits = float_bits(rounded) - float_bits(rounder);
    return {((exponent_bits - kSmallestBits) >> (23 - kMantissaBits)) + digits, rounded - rounder};
  }

  // The inverse, for a code without its sign bit.
  FASTCOMM_HOST_DEVICE static float value(uint32_t code) {
    constexpr uint32_t kOne = 1u << kMantissaBits;  // exponent fields 0 and 1 mean the same
    const uint32_t field = code & ~(kOne - 1);
    const uint32_t exponent = field > kOne ? field - kOne : 0u;
    const uint32_t rounder_bits =
        (exponent << (23 - kMantissaBits)) + kSmallestBits + kRounderExponent;
    return bits_float(rounder_bits + (code - exponent)) - bits_float(rounder_bits);
  }
};

}  // namespace fastcomm
