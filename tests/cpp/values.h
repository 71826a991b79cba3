#pragma once
// Inputs of the tests: reproducible values of the kinds that gradients come in, and the worst ones.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "core/dtype.h"

namespace fastcomm::testing {

using Bytes = std::vector<std::byte>;

inline constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// SplitMix64: small, and the same on every machine, which <random>'s distributions are not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(next() % static_cast<uint64_t>(bound));
  }
  // About a normal distribution: the sum of four uniform ones.
  float normal() {
    const uint64_t bits = next();
    float sum = 0;
    for (int part = 0; part < 4; ++part) {
      sum += static_cast<float>((bits >> (16 * part)) & 0xffff) / 65536.0f - 0.5f;
    }
    return sum * 1.732f;
  }

 private:
  uint64_t state_;
};

enum class Values {
  kNormal,
  kWideRange,   // exponents from denormal to nearly overflowing
  kMostlyZero,  // some -0
  kHalves,      // multiples of 1/2: ties of rounding, ties of selection
  kAllEqual,
  kTiny,       // around the magnitude below which a block's scale is zero, and denormal
  kHuge,       // a few nearly overflow, among normal values: sums and rotations may overflow
  kNonFinite,  // a few Inf and NaN among normal values
};
inline constexpr Values kAllValues[] = {Values::kNormal, Values::kWideRange, Values::kMostlyZero,
                                        Values::kHalves, Values::kAllEqual,  Values::kTiny,
                                        Values::kHuge,   Values::kNonFinite};

inline float random_value(Values kind, Random& random) {
  switch (kind) {
    case Values::kNormal:
      return random.normal();
    case Values::kWideRange:
      return std::ldexp(random.normal(), static_cast<int>(random.below(270)) - 145);
    case Values::kMostlyZero:
      return random.below(50) == 0 ? random.normal() : random.below(2) == 0 ? 0.0f : -0.0f;
    case Values::kHalves:
      return static_cast<float>(random.below(509) - 254) * 0.5f;
    case Values::kAllEqual:
      return -0.375f;
    case Values::kTiny:
      return std::ldexp(random.normal(), static_cast<int>(random.below(50)) - 145);
    case Values::kHuge:
      return random.below(40) == 0
                 ? std::ldexp(random.normal(), static_cast<int>(random.below(10)) + 117)
                 : random.normal();
    case Values::kNonFinite: {
      const float special[] = {kNaN, kInfinity, -kInfinity};
      return random.below(100) == 0 ? special[random.below(3)] : random.normal();
    }
  }
  return 0;
}

inline std::vector<float> random_values(Values kind, int64_t num_elements, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(num_elements));
  for (float& value : values) value = random_value(kind, random);
  return values;
}

// The values as elements of `dtype`, in memory.
inline Bytes to_dtype(DType dtype, std::span<const float> values) {
  Bytes bytes(values.size() * dtype_bytes(dtype));
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    for (size_t i = 0; i < values.size(); ++i) {
      const auto converted = from_float<Element>(values[i]);
      std::memcpy(bytes.data() + i * sizeof converted, &converted, sizeof converted);
    }
  });
  return bytes;
}

inline std::vector<float> to_floats(DType dtype, std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / dtype_bytes(dtype));
  visit_dtype(dtype, [&](auto element) {
    for (size_t i = 0; i < values.size(); ++i) {
      std::memcpy(&element, bytes.data() + i * sizeof element, sizeof element);
      values[i] = to_float(element);
    }
  });
  return values;
}

inline bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

// The bits of NaNs that were calculated are not part of any contract.
inline std::vector<float> with_one_nan(std::vector<float> values) {
  for (float& value : values) value = std::isnan(value) ? kNaN : value;
  return values;
}

inline std::vector<float> rounded_to(DType dtype, std::span<const float> values) {
  return to_floats(dtype, to_dtype(dtype, values));
}

inline std::vector<const std::byte*> pointers_to(const std::vector<Bytes>& sections) {
  std::vector<const std::byte*> pointers;
  for (const Bytes& section : sections) pointers.push_back(section.data());
  return pointers;
}

// Unlike ==, tells -0 from 0 and finds NaN equal to itself.
template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return same_bits(std::span<const T>(a), std::span<const T>(b));
}

}  // namespace fastcomm::testing
