#pragma once
// Arithmetic on CRC32C's remainders: polynomials over GF(2) modulo P. In a 32-bit remainder, bit
// 31 is the coefficient of x^0 and bit 0 that of x^31 (crc32c.cpp explains why).

#include <cstdint>

#include "core/host_device.h"

namespace fastcomm {

inline constexpr uint32_t kCrc32cPolynomial = 0x82f63b78u;  // P less x^32: Castagnoli's, reflected
inline constexpr uint32_t kRemainderOne = 0x80000000u;      // x^0

FASTCOMM_HOST_DEVICE constexpr uint32_t times_x(uint32_t remainder) {
  return (remainder >> 1) ^ ((remainder & 1) != 0 ? kCrc32cPolynomial : 0);
}

// a * b mod P
FASTCOMM_HOST_DEVICE constexpr uint32_t times(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kRemainderOne; bit != 0; bit >>= 1, b = times_x(b)) {
    if ((a & bit) != 0) product ^= b;
  }
  return product;
}

// x^exponent mod P
FASTCOMM_HOST_DEVICE constexpr uint32_t power_of_x(uint64_t exponent) {
  uint32_t power = kRemainderOne;
  uint32_t square = times_x(kRemainderOne);  // x^(2^i)
  for (; exponent != 0; exponent >>= 1, square = times(square, square)) {
    if ((exponent & 1) != 0) power = times(power, square);
  }
  return power;
}

}  // namespace fastcomm
