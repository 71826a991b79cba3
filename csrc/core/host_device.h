#pragma once
// Element math is written once and compiled for the host and for CUDA devices.

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTCOMM_HOST_DEVICE __host__ __device__ __forceinline__
#else
// always_inline: these functions carry no instruction set of their own and must melt into the
// loops of the instruction set that calls them.
#define FASTCOMM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fastcomm {

FASTCOMM_HOST_DEVICE uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

FASTCOMM_HOST_DEVICE float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

inline constexpr uint32_t kMagnitudeMask = 0x7fffffffu;
inline constexpr uint32_t kInfinityBits = 0x7f800000u;

// The magnitude of a float as an integer: it orders floats by |x|, with Inf and then NaN on top.
FASTCOMM_HOST_DEVICE uint32_t magnitude_bits(float value) {
  return float_bits(value) & kMagnitudeMask;
}

FASTCOMM_HOST_DEVICE bool is_finite(float value) { return magnitude_bits(value) < kInfinityBits; }

}  // namespace fastcomm
