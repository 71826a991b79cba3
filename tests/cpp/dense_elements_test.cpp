// The element math of the dense codecs: codes and values agree, rounding is half to even, nothing
// exceeds the largest code.

#include <cmath>

#include "dense_sections.h"
#include "doctest.h"
#include "float_format.h"

namespace fastcomm {
namespace {

using testing::FloatFormat;
using testing::Values;

constexpr BlockScale kOne{1, 1};

BlockScale scale_of(uint16_t wire_scale) {
  const float scale = bf16_to_float(wire_scale);
  return {scale, 1 / scale};
}

bool same_value(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || float_bits(a) == float_bits(b);
}

TEST_CASE("a quantized value is what its code decodes to") {
  testing::for_each_dense_codec([]<class C>(C) {
    CAPTURE(C::kName);
    constexpr uint64_t num_codes = uint64_t{1} << kCodeBits<C>;
    testing::Random random(1);
    for (const Values kind : testing::kAllValues) {
      if (kHasScale<C> && kind == Values::kNonFinite) continue;
      for (int trial = 0; trial < 20'000; ++trial) {
        const float value = testing::random_value(kind, random);
        BlockScale scale = kOne;
        if constexpr (kHasScale<C>) {
          // Of a block where this value is large, small or middling.
          const float larger = std::ldexp(std::fabs(value), static_cast<int>(random.below(12)));
          if (!(larger >= 0x1p-100f && larger < 0x1p127f)) continue;
          scale = scale_of(C::wire_scale(larger));
        }
        CAPTURE(value);
        CAPTURE(scale.scale);
        const Quantized quantized = C::quantize(value, scale);
        REQUIRE(quantized.code < num_codes);
        REQUIRE(same_value(quantized.value, C::dequantize(quantized.code, scale)));
        if constexpr (StochasticCodec<C>) {
          const auto noisy =
              C::quantize_stochastic(value, scale, static_cast<uint32_t>(random.next()));
          REQUIRE(noisy.code < num_codes);
          REQUIRE(same_value(noisy.value, C::dequantize(noisy.code, scale)));
        }
      }
    }
  });
}

TEST_CASE("the value of every code is encoded as that code") {
  testing::for_each_dense_codec([]<class C>(C) {
    CAPTURE(C::kName);
    const uint64_t num_codes = uint64_t{1} << std::min(kCodeBits<C>, 20);
    for (uint64_t i = 0; i < num_codes; ++i) {
      // Of 32 bits, the upper ones count through.
      const auto code = static_cast<uint32_t>(kCodeBits<C> == 32 ? i << 12 : i);
      CAPTURE(code);
      const float value = C::dequantize(code, kOne);
      const Quantized quantized = C::quantize(value, kOne);
      if (std::isnan(value)) {
        REQUIRE(std::isnan(quantized.value));
      } else if (C::kName == "fp8" && (code & 0x7f) == 0x7f) {
        REQUIRE(quantized.code == code - 1);  // e4m3's NaN is never sent
      } else {
        REQUIRE(quantized.code == code);
        REQUIRE(float_bits(quantized.value) == float_bits(value));
      }
    }
  });
}

// `Codec` is `format` with finite values that are too large sent as the largest.
template <class Codec>
void check_rounding(const FloatFormat& format) {
  auto check = [&](float value) {
    if (!std::isfinite(value)) return;
    CAPTURE(value);
    const Quantized quantized = Codec::quantize(value, kOne);
    const double expected = std::fmin(format.rounded_magnitude(value), format.largest());
    REQUIRE(std::fabs(quantized.value) == expected);
    REQUIRE(std::signbit(quantized.value) == std::signbit(value));
    REQUIRE(format.value(quantized.code) == quantized.value);
  };
  testing::for_each_critical_value(format, check);
  testing::Random random(1);
  for (int i = 0; i < 500'000; ++i) {
    check(bits_float(static_cast<uint32_t>(random.next())));
    check(std::ldexp(random.normal(), static_cast<int>(random.below(40)) - 27));
  }
}

TEST_CASE("fp8, fp16 and bf16 round half to even, up to their largest value") {
  check_rounding<Fp8>(testing::kE4m3Format);
  check_rounding<Fp16>(testing::kF16Format);
  check_rounding<Bf16>(testing::kBf16Format);
}

TEST_CASE("fp16 and fp8 decode every code to the value of the format") {
  for (uint32_t code = 0; code < 65536; ++code) {
    CAPTURE(code);
    if ((code & 0x7fff) < testing::kF16Format.num_finite) {
      REQUIRE(Fp16::dequantize(code, kOne) == testing::kF16Format.value(code));
    }
    if (code < 256 && (code & 0x7f) < testing::kE4m3Format.num_finite) {
      REQUIRE(Fp8::dequantize(code, kOne) == testing::kE4m3Format.value(code));
    }
  }
}

TEST_CASE("codecs without a scale send Inf as Inf and every NaN as one NaN") {
  testing::for_each_dense_codec([]<class C>(C) {
    if (kHasScale<C>) return;
    CAPTURE(C::kName);
    const Quantized nan = C::quantize(testing::kNaN, kOne);
    for (const float value : {testing::kInfinity, -testing::kInfinity}) {
      REQUIRE(C::quantize(value, kOne).value == value);
      REQUIRE(C::dequantize(C::quantize(value, kOne).code, kOne) == value);
    }
    for (uint32_t payload = 1; payload < 0x800000; payload = payload * 2 + 1) {
      for (const uint32_t sign : {0u, 0x80000000u}) {
        const Quantized quantized = C::quantize(bits_float(sign | kInfinityBits | payload), kOne);
        REQUIRE(quantized.code == nan.code);
        REQUIRE(std::isnan(quantized.value));
      }
    }
  });
}

template <class Codec>
void check_integer_rounding() {
  CAPTURE(Codec::kName);
  for (int eighths = -8 * Codec::kLevels; eighths <= 8 * Codec::kLevels; ++eighths) {
    const float value = static_cast<float>(eighths) / 8;
    CAPTURE(value);
    const auto expected = static_cast<int32_t>(std::nearbyint(value));
    const Quantized quantized = Codec::quantize(value, kOne);
    REQUIRE(quantized.value == static_cast<float>(expected));
    REQUIRE(quantized.code == (static_cast<uint32_t>(expected) & Codec::kCodeMask));
  }
}

TEST_CASE("int8 and int4 round half to even") {
  check_integer_rounding<Int8>();
  check_integer_rounding<Int4>();
}

TEST_CASE("a scale by the largest magnitude covers all of the block, and wastes less than 1/64") {
  auto check = []<class C>(C, double largest_level) {
    CAPTURE(C::kName);
    testing::Random random(1);
    for (int trial = 0; trial < 200'000; ++trial) {
      // Every binade, and all mantissas alike.
      const auto bits = static_cast<uint32_t>(
          kSmallestScalableBits + random.below(kLargestScalableBits - kSmallestScalableBits));
      const float largest = bits_float(bits);
      CAPTURE(largest);
      const BlockScale scale = scale_of(C::wire_scale(largest));
      REQUIRE(std::isfinite(scale.inverse));
      const double used = double{largest} / double{scale.scale};
      REQUIRE(used <= largest_level * (1 + 1e-6));
      REQUIRE(used >= largest_level * (1 - 1.0 / 64));
      for (const float value : {largest, -largest}) {
        const float sent = C::quantize(value, scale).value / scale.scale;
        REQUIRE(std::fabs(sent) <= largest_level);
        REQUIRE(std::signbit(sent) == std::signbit(value));
        REQUIRE(std::isfinite(value - C::quantize(value, scale).value));
      }
    }
  };
  check(Int8{}, 127);
  check(Int4{}, 7);
  check(Fp8{}, 448);
}

TEST_CASE("int2 sends the nearer of its levels") {
  testing::Random random(1);
  const BlockScale scale{0.75f, 1 / 0.75f};
  for (int trial = 0; trial < 10'000; ++trial) {
    const float value = 2 * random.normal();
    const float sent = Int2::quantize(value, scale).value;
    for (const float level : {-3 * 0.75f, -0.75f, 0.75f, 3 * 0.75f}) {
      REQUIRE(std::fabs(value - sent) <= std::fabs(value - level));
    }
  }
}

}  // namespace
}  // namespace fastcomm
