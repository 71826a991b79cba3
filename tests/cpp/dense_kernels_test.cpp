// The dense codecs' loops: nothing lost, small errors, known bytes.

#include <cmath>
#include <string>

#include "dense_sections.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bytes;
using testing::Encoded;
using testing::EncodeInputs;
using testing::Values;

float largest_of(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::fmax(largest, std::fabs(value));
  return largest;
}

// What encode must have encoded, in the order of additions that its contract names; for rotated
// codecs, up to rounding. `magnitudes`: the largest finite one that was added, of each block.
std::vector<float> accumulated(const DenseFormat& format, const EncodeInputs& inputs,
                               std::vector<float>& magnitudes) {
  std::vector<float> values(static_cast<size_t>(inputs.num_elements));
  magnitudes.assign(static_cast<size_t>(format.num_blocks(inputs.num_elements)), 0);
  auto add = [&](const std::vector<float>& added) {
    for (size_t i = 0; i < added.size(); ++i) {
      float& magnitude = magnitudes[i / static_cast<size_t>(format.block_elements)];
      if (std::isfinite(added[i])) magnitude = std::fmax(magnitude, std::fabs(added[i]));
      values[i] += added[i];
    }
  };
  add(testing::to_floats(inputs.dtype, inputs.gradient));
  add(inputs.residual);
  for (const Bytes& received : inputs.received) {
    add(testing::decode_one(format, received, inputs.num_elements));
  }
  return values;
}

TEST_CASE("decode(section) + residual is bit-exactly what was encoded") {
  for (const DenseFormat& format : dense_formats()) {
    if (format.is_rotated) continue;
    testing::for_each_inputs(format, [&](const EncodeInputs& inputs) {
      if (inputs.residual.empty()) return;
      std::vector<float> unused;
      const std::vector<float> values = accumulated(format, inputs, unused);
      const Encoded out = encode(format, supported_isas().back(), inputs);
      const auto delivered = testing::decode_one(format, out.section, inputs.num_elements);
      const size_t extent = format.has_scale ? static_cast<size_t>(format.block_elements) : 1;
      for (size_t begin = 0; begin < values.size(); begin += extent) {
        const size_t end = std::min(values.size(), begin + extent);
        const auto block = std::span(values).subspan(begin, end - begin);
        // A codec with a scale also gives up blocks whose scale might overflow.
        const bool is_scalable = !format.has_scale || largest_of(block) < 0x1p127f;
        const bool is_finite_block = testing::all_finite(block) && is_scalable;
        for (size_t i = begin; i < end; ++i) {
          CAPTURE(i);
          CAPTURE(values[i]);
          if (is_finite_block) {
            // fp16 cuts off values that the rest of an f32 is too short for.
            const bool is_cut_off = format.name == "fp16" && std::fabs(values[i]) > 65504;
            const double rounding = is_cut_off ? std::fabs(values[i]) * 0x1p-24 : 0;
            const double sum = double{delivered[i]} + double{out.residual[i]};
            REQUIRE(std::fabs(sum - double{values[i]}) <= rounding);
          } else {
            REQUIRE_FALSE(std::isfinite(delivered[i]));
            REQUIRE(testing::same_bits<float>({&out.residual[i], 1}, {&inputs.residual[i], 1}));
          }
        }
      }
    });
  }
}

// Either a block is delivered, and what is left out is in the residual, or it is NaN everywhere and
// the residual is as it was: with values that are not finite, or so large that sums may overflow.
void check_block_conserved(std::span<const float> values, std::span<const float> before,
                           std::span<const float> delivered, std::span<const float> after,
                           float magnitude) {
  REQUIRE(testing::all_finite(after));
  const bool is_delivered = testing::all_finite(delivered);
  if (!testing::all_finite(values)) REQUIRE_FALSE(is_delivered);
  if (!is_delivered) {
    REQUIRE((!testing::all_finite(values) || magnitude >= 0x1p109f));
    for (const float value : delivered) REQUIRE(std::isnan(value));
    REQUIRE(testing::same_bits(after, before));
    return;
  }
  const double tolerance = 1e-6 * double{std::fmax(magnitude, largest_of(after))} + 0x1p-140;
  for (size_t i = 0; i < values.size(); ++i) {
    CAPTURE(i);
    CAPTURE(values[i]);
    REQUIRE(std::fabs(double{delivered[i]} + double{after[i]} - double{values[i]}) <= tolerance);
  }
}

TEST_CASE("decode(section) + residual of a rotated codec is what was encoded") {
  for (const DenseFormat& format : dense_formats()) {
    if (!format.is_rotated) continue;
    testing::for_each_inputs(format, [&](const EncodeInputs& inputs) {
      if (inputs.residual.empty()) return;
      std::vector<float> magnitudes;
      const std::vector<float> values = accumulated(format, inputs, magnitudes);
      const Encoded out = encode(format, supported_isas().back(), inputs);
      const auto delivered = testing::decode_one(format, out.section, inputs.num_elements);
      const auto extent = static_cast<size_t>(format.block_elements);
      for (size_t block = 0; block < magnitudes.size(); ++block) {
        auto part = [&](const std::vector<float>& all) {
          const size_t begin = block * extent;
          return std::span(all).subspan(begin, std::min(extent, all.size() - begin));
        };
        check_block_conserved(part(values), part(inputs.residual), part(delivered),
                              part(out.residual), magnitudes[block]);
      }
    });
  }
}

TEST_CASE("values that nearly overflow never leave a residual that is not finite") {
  for (const DenseFormat& format : dense_formats()) {
    CAPTURE(format.name);
    testing::Random random(1);
    for (int trial = 0; trial < 5000; ++trial) {
      const int64_t n = 1 + random.below(300);
      const int64_t num_large = 1 + random.below(trial % 2 == 0 ? 3 : n);
      const int exponent = 100 + static_cast<int>(random.below(25));
      CAPTURE(trial);
      CAPTURE(n);
      std::vector<float> values(static_cast<size_t>(n));
      auto add_large_values = [&] {
        for (int64_t i = 0; i < num_large; ++i) {
          const int larger = static_cast<int>(random.below(3));
          values[static_cast<size_t>(random.below(n))] =
              std::ldexp(random.normal(), exponent + larger);
        }
      };
      add_large_values();
      EncodeInputs inputs = testing::inputs_of(values, true);
      if (trial % 3 == 0) {
        inputs.received.push_back(encode(format, Isa::kBaseline, inputs).section);
        add_large_values();
        inputs.gradient = testing::to_dtype(DType::kFloat32, values);
      }
      const Encoded out = encode(format, supported_isas().back(), inputs);
      REQUIRE(testing::all_finite(out.residual));
    }
  }
}

TEST_CASE("what is left out is at most half a step of the codec") {
  constexpr int64_t kNumElements = 5000;
  for (const DenseFormat& format : dense_formats()) {
    CAPTURE(format.name);
    const auto values = testing::random_values(Values::kNormal, kNumElements, 3);
    const Encoded out = encode(format, supported_isas().back(), testing::inputs_of(values, true));
    const double levels = format.name == "int8" ? 127 : format.name == "int4" ? 7 : 448;
    const auto block = static_cast<size_t>(format.block_elements);
    for (size_t i = 0; i < values.size() && !format.is_rotated; ++i) {
      const size_t begin = i / block * block;
      const double value = std::fabs(values[i]);
      const double absmax =
          largest_of(std::span(values).subspan(begin, std::min(block, values.size() - begin)));
      // The scale is rounded up to bf16: at most 1/128 larger.
      const double half_step = absmax / levels * (129.0 / 128.0) * 0.500001;
      const double bound = format.name == "fp32"   ? 0
                           : format.name == "bf16" ? value * 0x1p-8
                           : format.name == "fp16" ? value * 0x1p-11 + 0x1p-25
                           : format.name == "fp8"  ? value * 0x1p-4 + half_step * 0x1p-9
                                                   : half_step;
      REQUIRE(std::fabs(out.residual[i]) <= bound);
    }
  }
}

// The section of one block without a rotation.
void check_section(std::string_view codec, const std::vector<float>& values,
                   const std::vector<int>& expected, size_t num_bytes) {
  CAPTURE(codec);
  EncodeInputs inputs = testing::inputs_of(values);
  inputs.signs = nullptr;
  Bytes section(num_bytes);
  for (size_t i = 0; i < expected.size(); ++i) section[i] = static_cast<std::byte>(expected[i]);
  for (const Isa isa : supported_isas()) {
    CHECK(encode(dense_format(codec), isa, inputs).section == section);
  }
}

TEST_CASE("known answers: the bytes of one block") {
  // A section starts with the block's bf16 scale, 1.0 = 0x3f80 here, padded to 16 bytes.
  auto scaled = [](std::vector<int> codes) {
    std::vector<int> bytes(16);
    bytes[0] = 0x80;
    bytes[1] = 0x3f;
    bytes.insert(bytes.end(), codes.begin(), codes.end());
    return bytes;
  };
  check_section("int8", {127, -127, 1, 0.5, 1.5, -2.5, 0, -0.25},
                scaled({127, -127, 1, 0, 2, -2, 0, 0}), 32);
  // Three units: 7 and 0.5 (to 0), -7 and -1, 3 and padding.
  check_section("int4", {7, -7, 3, 0.5, -1}, scaled({0x07, 0xf9, 0x03}), 32);
  check_section("fp8", {448, -448, 1, -1.5, 0, -0.0f, 0x1p-9f, 17},
                scaled({0x7e, 0xfe, 0x38, 0xbc, 0x00, 0x80, 0x01, 0x58}), 32);
  // Two units. The mean magnitude is 1 / 0.624.
  std::vector<float> values{2, -0.5, -1.375, 0.125, 1, -1};
  for (float& value : values) value /= 0.624f;
  check_section("int2", values, scaled({0x0d, 0x22}), 32);
  // One unit of eight signs. The mean magnitude is 1.
  check_section("sign", {1, -2, 0.5, -0.5, -0.0f, 2, -1, 1}, scaled({0x5a}), 32);
  check_section("fp16", {1, -2, 65504, 65520, 0x1p-24f, 0x1p-25f},
                {0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0xff, 0x7b, 0x01, 0x00, 0x00, 0x00}, 16);
}

TEST_CASE("sections have the sizes of the contract's table") {
  const int64_t n = int64_t{1} << 20;
  auto bytes_per_element = [&](std::string_view codec) {
    return static_cast<double>(dense_format(codec).section_bytes(n)) / static_cast<double>(n);
  };
  CHECK(bytes_per_element("fp32") == 4);
  CHECK(bytes_per_element("fp16") == 2);
  CHECK(bytes_per_element("bf16") == 2);
  CHECK(bytes_per_element("int8") <= 1.004);
  CHECK(bytes_per_element("fp8") <= 1.004);
  CHECK(bytes_per_element("int4") <= 0.508);
  CHECK(bytes_per_element("int2") <= 0.258);
  CHECK(bytes_per_element("sign") <= 0.133);
  for (const DenseFormat& format : dense_formats()) {
    for (const int64_t size : testing::kSectionSizes) CHECK(format.section_bytes(size) % 16 == 0);
    CHECK(format.section_bytes(0) == 0);
  }
}

TEST_CASE("an unknown codec is an error that names it") {
  CHECK_THROWS_WITH_AS(dense_format("int9"), doctest::Contains("'int9'"), Error);
}

}  // namespace
}  // namespace fastcomm
