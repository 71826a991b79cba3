#pragma once
// The element types of a gradient bucket, and their exact conversions to and from f32.
//
// The conversions are integer and f32 arithmetic only, without branches, so that every compiler
// vectorizes them and CPU and GPU agree on every bit.

#include <cstddef>
#include <cstdint>

#include "core/check.h"
#include "core/host_device.h"

namespace fastcomm {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// condition ? a : b on whole words. GCC narrows a ternary whose result is stored as 16 bits, and
// then cannot vectorize it with a 32-bit condition.
FASTCOMM_HOST_DEVICE uint32_t select_word(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

FASTCOMM_HOST_DEVICE float bf16_to_float(uint16_t bits) {
  return bits_float(static_cast<uint32_t>(bits) << 16);
}

// Round half to even; every NaN becomes 0x7fc0 (processors differ in the sign of theirs), Inf stays
// Inf, and a finite value never becomes Inf.
FASTCOMM_HOST_DEVICE uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t magnitude = bits & kMagnitudeMask;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rounded = (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16;
  const uint32_t saturated = rounded < 0x7f7fu ? rounded : 0x7f7fu;
  const uint32_t number = sign | select_word(magnitude < kInfinityBits, saturated, 0x7f80u);
  return static_cast<uint16_t>(select_word(magnitude > kInfinityBits, 0x7fc0u, number));
}

FASTCOMM_HOST_DEVICE float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7fffu;
  // 0.5 has the last digit of f16's subnormals, so that no arithmetic is on f32 subnormals, which
  // are slow on some processors and flushed to zero in some modes.
  const uint32_t subnormal = float_bits(bits_float(0x3f000000u | magnitude) - 0.5f);
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t finite = select_word(magnitude < 0x0400u, subnormal, normal);
  return bits_float(sign | finite | select_word(magnitude >= 0x7c00u, kInfinityBits, 0u));
}

// Round half to even; above 65519.99 becomes Inf, as torch's own conversion does.
FASTCOMM_HOST_DEVICE uint16_t float_to_f16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t magnitude = bits & kMagnitudeMask;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  // Below the smallest normal f16, adding 0.5 aligns the subnormal's last bit with f32's.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t non_finite = select_word(magnitude > kInfinityBits, 0x7e00u, 0x7c00u);
  const uint32_t finite = select_word(magnitude < 0x38800000u, subnormal, normal);
  return static_cast<uint16_t>(sign | select_word(magnitude < 0x47800000u, finite, non_finite));
}

FASTCOMM_HOST_DEVICE float to_float(float value) { return value; }
FASTCOMM_HOST_DEVICE float to_float(BFloat16 value) { return bf16_to_float(value.bits); }
FASTCOMM_HOST_DEVICE float to_float(Float16 value) { return f16_to_float(value.bits); }

template <class Element>
FASTCOMM_HOST_DEVICE Element from_float(float value) {
  if constexpr (sizeof(Element) == sizeof(float)) {
    return value;
  } else if constexpr (__is_same(Element, BFloat16)) {
    return BFloat16{float_to_bf16(value)};
  } else {
    return Float16{float_to_f16(value)};
  }
}

inline constexpr uint32_t kNanBits = 0x7fc00000u;

// One NaN for all processors, which differ in the sign and the digits of theirs.
FASTCOMM_HOST_DEVICE float with_one_nan(float value) {
  return bits_float(
      select_word(magnitude_bits(value) > kInfinityBits, kNanBits, float_bits(value)));
}

// An element of a result: the same bits on every processor.
template <class Element>
FASTCOMM_HOST_DEVICE Element to_result(float value) {
  return from_float<Element>(with_one_nan(value));
}

inline size_t dtype_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Calls `visitor` with a value of the C++ type that `dtype` stands for.
template <class Visitor>
decltype(auto) visit_dtype(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::kFloat32:
      return visitor(float{});
    case DType::kBFloat16:
      return visitor(BFloat16{});
    case DType::kFloat16:
      return visitor(Float16{});
  }
  FASTCOMM_FAIL("unknown dtype " << static_cast<int>(dtype));
}

}  // namespace fastcomm
