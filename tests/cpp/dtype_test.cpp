// Conversions between the element types, against a slow reference in exact arithmetic.

#include "core/dtype.h"

#include <cmath>

#include "doctest.h"
#include "float_format.h"
#include "values.h"

namespace fastcomm {
namespace {

using testing::for_each_critical_value;
using testing::kBf16Format;
using testing::kF16Format;
using testing::kInfinity;
using testing::kNaN;

constexpr uint32_t kBf16Infinity = kBf16Format.num_finite;
constexpr uint32_t kF16Infinity = kF16Format.num_finite;

TEST_CASE("bf16 and f16 round trip all bit patterns") {
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const auto bits = static_cast<uint16_t>(pattern);
    CAPTURE(bits);
    const bool is_bf16_nan = (bits & 0x7fff) > kBf16Infinity;
    const bool is_f16_nan = (bits & 0x7fff) > kF16Infinity;
    if (is_bf16_nan) {
      REQUIRE(std::isnan(bf16_to_float(bits)));
      REQUIRE((float_to_bf16(bf16_to_float(bits)) & 0x7fff) > kBf16Infinity);
    } else {
      REQUIRE(float_to_bf16(bf16_to_float(bits)) == bits);
    }
    if (is_f16_nan) {
      REQUIRE(std::isnan(f16_to_float(bits)));
      REQUIRE((float_to_f16(f16_to_float(bits)) & 0x7fff) > kF16Infinity);
    } else {
      REQUIRE(float_to_f16(f16_to_float(bits)) == bits);
    }
    if ((bits & 0x7fff) < kBf16Infinity) REQUIRE(bf16_to_float(bits) == kBf16Format.value(bits));
    if ((bits & 0x7fff) < kF16Infinity) REQUIRE(f16_to_float(bits) == kF16Format.value(bits));
  }
}

void check_bf16(float value) {
  if (!std::isfinite(value)) return;
  CAPTURE(value);
  const uint16_t bits = float_to_bf16(value);
  REQUIRE(std::signbit(bf16_to_float(bits)) == std::signbit(value));
  const double expected = std::fmin(kBf16Format.rounded_magnitude(value), kBf16Format.largest());
  REQUIRE(std::fabs(bf16_to_float(bits)) == expected);
}

void check_f16(float value) {
  if (!std::isfinite(value)) return;
  CAPTURE(value);
  const uint16_t bits = float_to_f16(value);
  REQUIRE(std::signbit(f16_to_float(bits)) == std::signbit(value));
  const double rounded = kF16Format.rounded_magnitude(value);
  const double expected =
      rounded > kF16Format.largest() ? std::numeric_limits<double>::infinity() : rounded;
  REQUIRE(std::fabs(f16_to_float(bits)) == expected);
}

TEST_CASE("conversions to bf16 and f16 round half to even") {
  for_each_critical_value(kBf16Format, check_bf16);
  for_each_critical_value(kF16Format, check_f16);
  testing::Random random(1);
  for (int i = 0; i < 500'000; ++i) {
    const float value = bits_float(static_cast<uint32_t>(random.next()));
    check_bf16(value);
    check_f16(value);
  }
}

TEST_CASE("a finite value never becomes an infinite bf16; f16 overflows as in torch") {
  const float largest = std::numeric_limits<float>::max();
  CHECK(float_to_bf16(largest) == 0x7f7f);
  CHECK(float_to_bf16(-largest) == 0xff7f);
  CHECK(float_to_bf16(kInfinity) == 0x7f80);
  CHECK(float_to_bf16(-kInfinity) == 0xff80);
  CHECK(float_to_bf16(kNaN) == 0x7fc0);

  CHECK(float_to_f16(65519.996f) == 0x7bff);
  CHECK(float_to_f16(65520.0f) == 0x7c00);
  CHECK(float_to_f16(-largest) == 0xfc00);
  CHECK(float_to_f16(-kInfinity) == 0xfc00);
  CHECK((float_to_f16(kNaN) & 0x7fff) == 0x7e00);
}

TEST_CASE("NaNs of every payload stay NaN; bf16 has one for all of them") {
  for (uint32_t payload = 1; payload < 0x800000; payload = payload * 2 + 1) {
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const float value = bits_float(sign | kInfinityBits | payload);
      CHECK(float_to_bf16(value) == 0x7fc0);
      CHECK(std::isnan(f16_to_float(float_to_f16(value))));
    }
  }
}

TEST_CASE("visit_dtype gives each type its C++ element") {
  for (const DType dtype : testing::kAllDTypes) {
    CHECK(visit_dtype(dtype, [](auto element) { return sizeof element; }) == dtype_bytes(dtype));
  }
  CHECK_THROWS_AS(visit_dtype(static_cast<DType>(9), [](auto) {}), Error);
}

}  // namespace
}  // namespace fastcomm
