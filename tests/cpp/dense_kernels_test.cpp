// The dense codecs' loops: the same bytes on every instruction set, and nothing lost.

#include <cmath>
#include <string>

#include "codecs/dense/kernels.h"
#include "doctest.h"
#include "values.h"

namespace fastcomm {
namespace {

using testing::Values;

constexpr int64_t kSizes[] = {0,   1,   2,   3,   5,   15,  16,   17,   63,  255,
                              256, 257, 511, 512, 513, 767, 1023, 1025, 4103};
constexpr std::byte kGuard{0xa5};
constexpr size_t kGuardBytes = 64;

struct Inputs {
  DType dtype;
  std::vector<std::byte> gradient;
  std::vector<float> residual;      // empty: no error feedback
  std::vector<std::byte> received;  // empty: none
  int64_t num_elements;
};

struct Outputs {
  std::vector<std::byte> section;
  std::vector<float> residual;
};

Outputs encode(const DenseFormat& format, Isa isa, const Inputs& inputs) {
  Outputs out{
      std::vector<std::byte>(
          static_cast<size_t>(format.section_bytes(inputs.num_elements)) + kGuardBytes, kGuard),
      inputs.residual};
  const size_t section_bytes = out.section.size() - kGuardBytes;
  format.encode(isa, inputs.dtype,
                {inputs.gradient.data(), out.residual.empty() ? nullptr : out.residual.data(),
                 inputs.received.empty() ? nullptr : inputs.received.data(), out.section.data(),
                 inputs.num_elements});
  for (size_t i = section_bytes; i < out.section.size(); ++i) REQUIRE(out.section[i] == kGuard);
  out.section.resize(section_bytes);
  return out;
}

std::vector<float> decode(const DenseFormat& format, Isa isa, DType dtype,
                          const std::vector<const std::byte*>& sections, int64_t num_elements,
                          float factor) {
  const size_t bytes = static_cast<size_t>(num_elements) * dtype_bytes(dtype);
  std::vector<std::byte> out(bytes + kGuardBytes, kGuard);
  format.decode(
      isa, dtype,
      {sections.data(), static_cast<int>(sections.size()), out.data(), factor, num_elements});
  for (size_t i = bytes; i < out.size(); ++i) REQUIRE(out[i] == kGuard);
  out.resize(bytes);
  return testing::to_floats(dtype, out);
}

std::vector<float> decode_one(const DenseFormat& format, const std::vector<std::byte>& section,
                              int64_t num_elements) {
  return decode(format, Isa::kBaseline, DType::kFloat32, {section.data()}, num_elements, 1.0f);
}

// Calls visit(inputs) with all dtypes, kinds of values and sizes, with and without a residual and
// a received section.
template <class Visit>
void for_each_inputs(const DenseFormat& format, Visit&& visit) {
  uint64_t seed = 0;
  for (const DType dtype : testing::kAllDTypes) {
    for (const Values kind : testing::kAllValues) {
      for (const int64_t n : kSizes) {
        for (const bool has_residual : {false, true}) {
          for (const bool has_received : {false, true}) {
            CAPTURE(format.name);
            CAPTURE(static_cast<int>(dtype));
            CAPTURE(static_cast<int>(kind));
            CAPTURE(n);
            CAPTURE(has_residual);
            CAPTURE(has_received);
            ++seed;
            Inputs inputs{
                dtype, testing::to_dtype(dtype, testing::random_values(kind, n, seed)), {}, {}, n};
            if (has_residual) inputs.residual = testing::random_values(Values::kTiny, n, seed + 1);
            if (has_residual && seed % 3 != 0) {
              inputs.residual = testing::random_values(Values::kNormal, n, seed + 1);
            }
            if (has_received) {
              Inputs other{DType::kFloat32, {}, {}, {}, n};
              other.gradient =
                  testing::to_dtype(DType::kFloat32, testing::random_values(kind, n, seed + 2));
              inputs.received = encode(format, Isa::kBaseline, other).section;
            }
            visit(inputs);
          }
        }
      }
    }
  }
}

TEST_CASE("every instruction set writes the bytes of the baseline") {
  for (const DenseFormat& format : dense_formats()) {
    for_each_inputs(format, [&](const Inputs& inputs) {
      const Outputs expected = encode(format, Isa::kBaseline, inputs);
      const std::vector<const std::byte*> sections{expected.section.data(),
                                                   expected.section.data()};
      const auto decoded =
          decode(format, Isa::kBaseline, inputs.dtype, sections, inputs.num_elements, 0.7f);
      for (const Isa isa : supported_isas()) {
        CAPTURE(isa_name(isa));
        const Outputs actual = encode(format, isa, inputs);
        REQUIRE(testing::same_bits(actual.section, expected.section));
        REQUIRE(testing::same_bits(actual.residual, expected.residual));
        REQUIRE(testing::same_bits(
            decode(format, isa, inputs.dtype, sections, inputs.num_elements, 0.7f), decoded));
      }
    });
  }
}

// What encode must have encoded, in the order of additions that its contract names.
std::vector<float> accumulated(const DenseFormat& format, const Inputs& inputs) {
  std::vector<float> values = testing::to_floats(inputs.dtype, inputs.gradient);
  for (size_t i = 0; i < inputs.residual.size(); ++i) values[i] += inputs.residual[i];
  if (!inputs.received.empty()) {
    const auto received = decode_one(format, inputs.received, inputs.num_elements);
    for (size_t i = 0; i < values.size(); ++i) values[i] += received[i];
  }
  return values;
}

TEST_CASE("decode(section) + residual is bit-exactly what was encoded") {
  for (const DenseFormat& format : dense_formats()) {
    for_each_inputs(format, [&](const Inputs& inputs) {
      if (inputs.residual.empty()) return;
      const std::vector<float> values = accumulated(format, inputs);
      const Outputs out = encode(format, supported_isas().back(), inputs);
      const auto delivered = decode_one(format, out.section, inputs.num_elements);
      const size_t extent = format.has_scale ? static_cast<size_t>(format.block_elements) : 1;
      for (size_t begin = 0; begin < values.size(); begin += extent) {
        const size_t end = std::min(values.size(), begin + extent);
        float absmax = 0;
        bool is_finite_block = true;
        for (size_t i = begin; i < end; ++i) {
          is_finite_block = is_finite_block && std::isfinite(values[i]);
          absmax = std::fmax(absmax, std::fabs(values[i]));
        }
        // A codec with a scale also gives up blocks whose scale might overflow.
        if (format.has_scale && absmax >= 0x1p127f) is_finite_block = false;
        for (size_t i = begin; i < end; ++i) {
          CAPTURE(i);
          CAPTURE(values[i]);
          if (is_finite_block) {
            REQUIRE(double{delivered[i]} + double{out.residual[i]} == double{values[i]});
          } else {
            REQUIRE_FALSE(std::isfinite(delivered[i]));
            REQUIRE(testing::same_bits<float>({&out.residual[i], 1}, {&inputs.residual[i], 1}));
          }
        }
      }
    });
  }
}

TEST_CASE("what is left out is at most half a step of the codec") {
  constexpr int64_t kNumElements = 5000;
  for (const DenseFormat& format : dense_formats()) {
    CAPTURE(format.name);
    Inputs inputs{DType::kFloat32, {}, std::vector<float>(kNumElements), {}, kNumElements};
    const auto values = testing::random_values(Values::kNormal, kNumElements, 3);
    inputs.gradient = testing::to_dtype(DType::kFloat32, values);
    const Outputs out = encode(format, supported_isas().back(), inputs);
    const int levels = format.name == "int8" ? 127 : format.name == "int4" ? 7 : 0;
    for (int64_t i = 0; i < kNumElements; ++i) {
      const int64_t begin = i / format.block_elements * format.block_elements;
      float absmax = 0;
      for (int64_t j = begin; j < std::min(kNumElements, begin + format.block_elements); ++j) {
        absmax = std::fmax(absmax, std::fabs(values[static_cast<size_t>(j)]));
      }
      const auto index = static_cast<size_t>(i);
      // The scale is rounded up to bf16: at most 1/128 larger.
      const double half_step = format.name == "fp32"   ? 0.0
                               : format.name == "bf16" ? std::fabs(values[index]) / 256.0
                               : levels > 0 ? absmax / levels * (129.0 / 128.0) * 0.500001
                                            : absmax;
      REQUIRE(std::fabs(out.residual[index]) <= half_step);
    }
  }
}

TEST_CASE("known answers: one block of int8 and int4") {
  SUBCASE("int8: scale 1, rounded half to even") {
    const std::vector<float> values{127, -127, 1, 0.5, 1.5, -2.5, 0, -0.25};
    const Inputs inputs{DType::kFloat32, testing::to_dtype(DType::kFloat32, values), {}, {}, 8};
    const auto section = encode(dense_format("int8"), Isa::kBaseline, inputs).section;
    std::vector<std::byte> expected(32);
    expected[1] = std::byte{0x3f};  // bf16 1.0 is 0x3f80
    expected[0] = std::byte{0x80};
    const int codes[] = {127, -127, 1, 0, 2, -2, 0, 0};
    for (size_t i = 0; i < 8; ++i) expected[16 + i] = static_cast<std::byte>(codes[i]);
    CHECK(section == expected);
  }
  SUBCASE("int4: the first half of a block is in the low bits") {
    const std::vector<float> values{7, -7, 3, 0.5, -1};
    const Inputs inputs{DType::kFloat32, testing::to_dtype(DType::kFloat32, values), {}, {}, 5};
    const auto section = encode(dense_format("int4"), Isa::kBaseline, inputs).section;
    std::vector<std::byte> expected(32);
    expected[1] = std::byte{0x3f};
    expected[0] = std::byte{0x80};
    expected[16] = std::byte{0x07};  // 7, and 0.5 rounds to 0
    expected[17] = std::byte{0xf9};  // -7 and -1
    expected[18] = std::byte{0x03};  // 3, and padding
    CHECK(section == expected);
  }
}

TEST_CASE("sections have the sizes of the contract's table") {
  const int64_t n = int64_t{1} << 20;
  CHECK(dense_format("fp32").section_bytes(n) == 4 * n);
  CHECK(dense_format("bf16").section_bytes(n) == 2 * n);
  CHECK(static_cast<double>(dense_format("int8").section_bytes(n)) <= 1.004 * n);
  CHECK(static_cast<double>(dense_format("int4").section_bytes(n)) <= 0.508 * n);
  for (const DenseFormat& format : dense_formats()) {
    for (const int64_t size : kSizes) CHECK(format.section_bytes(size) % 16 == 0);
    CHECK(format.section_bytes(0) == 0);
  }
}

TEST_CASE("decode sums the sections in order and multiplies by the factor") {
  constexpr int64_t kNumElements = 1000;
  for (const DenseFormat& format : dense_formats()) {
    CAPTURE(format.name);
    std::vector<std::vector<std::byte>> sections;
    std::vector<float> sum(kNumElements);
    for (uint64_t seed = 0; seed < 5; ++seed) {
      const auto values = testing::random_values(Values::kNormal, kNumElements, seed);
      const Inputs inputs{
          DType::kFloat32, testing::to_dtype(DType::kFloat32, values), {}, {}, kNumElements};
      sections.push_back(encode(format, Isa::kBaseline, inputs).section);
      const auto decoded = decode_one(format, sections.back(), kNumElements);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += decoded[i];
    }
    for (float& value : sum) value *= 0.2f;
    std::vector<const std::byte*> pointers;
    for (const auto& section : sections) pointers.push_back(section.data());
    for (const DType dtype : testing::kAllDTypes) {
      const auto actual =
          decode(format, supported_isas().back(), dtype, pointers, kNumElements, 0.2f);
      CHECK(testing::same_bits(actual, testing::rounded_to(dtype, sum)));
    }
  }
}

TEST_CASE("an unknown codec is an error that names it") {
  CHECK_THROWS_WITH_AS(dense_format("int9"), doctest::Contains("'int9'"), Error);
}

}  // namespace
}  // namespace fastcomm
