#pragma once
// Binary floating-point formats by their definition, in exact arithmetic.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastcomm::testing {

struct FloatFormat {
  int num_bits;
  int mantissa_bits;
  int smallest_exponent;  // of a normal number
  uint32_t num_finite;    // codes 0 .. num_finite - 1 are finite magnitudes

  uint32_t sign_bit() const { return 1u << (num_bits - 1); }
  double largest() const { return value(num_finite - 1); }

  double value(uint32_t code) const {
    const uint32_t magnitude_code = code & (sign_bit() - 1);
    const int exponent_field = static_cast<int>(magnitude_code >> mantissa_bits);
    const int mantissa = static_cast<int>(magnitude_code & ((1u << mantissa_bits) - 1));
    const int implicit = exponent_field == 0 ? 0 : 1 << mantissa_bits;
    const int exponent = smallest_exponent + std::max(exponent_field, 1) - 1;
    const double magnitude = std::ldexp(implicit + mantissa, exponent - mantissa_bits);
    return code & sign_bit() ? -magnitude : magnitude;
  }

  // The magnitude of a finite `value` in units of its last place, rounded half to even: exact,
  // because an f32 divided by a power of two is a double.
  double rounded_magnitude(double value) const {
    if (value == 0) return 0;
    const int exponent = std::max(std::ilogb(value), smallest_exponent);
    const double unit = std::ldexp(1.0, exponent - mantissa_bits);
    return std::nearbyint(std::fabs(value) / unit) * unit;
  }
};

inline constexpr FloatFormat kBf16Format{16, 7, -126, 0x7f80};
inline constexpr FloatFormat kF16Format{16, 10, -14, 0x7c00};
inline constexpr FloatFormat kE4m3Format{8, 3, -6, 0x7f};

// Each value of the format, what lies halfway to the next, and their f32 neighbours.
template <class Visit>
void for_each_critical_value(const FloatFormat& format, Visit&& visit) {
  for (uint32_t code = 0; code < format.num_finite; ++code) {
    const double low = format.value(code);
    const double high =
        code + 1 == format.num_finite ? 2 * low - format.value(code - 1) : format.value(code + 1);
    for (const double exact : {low, (low + high) / 2}) {
      const auto value = static_cast<float>(exact);
      const float above = std::numeric_limits<float>::infinity();
      for (const float near : {std::nextafter(value, 0.0f), value, std::nextafter(value, above)}) {
        visit(near);
        visit(-near);
      }
    }
  }
}

}  // namespace fastcomm::testing
