// Decoding where results are large, lie anywhere in memory, or come in parts; and its sums.

#include "dense_oracle.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bytes;
using testing::DecodeInputs;
using testing::DenseOracle;
using testing::Values;

std::vector<Bytes> random_sections(const DenseFormat& format, int64_t num_elements, int count) {
  std::vector<Bytes> sections;
  for (int i = 0; i < count; ++i) {
    const auto values =
        testing::random_values(Values::kNormal, num_elements, static_cast<uint64_t>(i));
    sections.push_back(encode(format, Isa::kBaseline, testing::inputs_of(values)).section);
  }
  return sections;
}

TEST_CASE("large results are those of the definition, wherever they lie in memory") {
  constexpr size_t kLargeBytes = size_t{600} << 10;  // past the cache from 512 KiB on
  testing::for_each_dense_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    for (const DType dtype : testing::kAllDTypes) {
      const auto n = static_cast<int64_t>(kLargeBytes / dtype_bytes(dtype)) + 77;
      const auto sections = random_sections(format, n, 2);
      for (const size_t num_sections : {size_t{1}, size_t{2}}) {
        CAPTURE(format.name);
        CAPTURE(static_cast<int>(dtype));
        CAPTURE(num_sections);
        DecodeInputs inputs{
            .sections = {sections.begin(), sections.begin() + static_cast<int>(num_sections)},
            .num_elements = n,
            .dtype = dtype,
            .factor = 0.5f};
        const auto expected = testing::to_dtype(dtype, DenseOracle<C>::decode(inputs));
        for (const Isa isa : supported_isas()) {
          CAPTURE(isa_name(isa));
          for (const size_t misalignment : {0, 1, 2, 7, 8, 15, 31}) {
            inputs.misalignment = misalignment;
            CAPTURE(misalignment);
            REQUIRE(decode_bytes(format, isa, inputs) == expected);
          }
          REQUIRE(decode_bytes(format, isa, inputs, 1) == expected);
          REQUIRE(decode_bytes(format, isa, inputs, 100) == expected);
        }
      }
    }
  });
}

TEST_CASE("results of just less and just more than the size that goes past the cache") {
  testing::for_each_dense_codec([]<class C>(C) {
    CAPTURE(C::kName);
    const DenseFormat& format = dense_format(C::kName);
    constexpr int64_t kSize = (int64_t{1} << 19) / 4;
    for (const int64_t n : {kSize - 1, kSize, kSize + 1}) {
      const DecodeInputs inputs{.sections = random_sections(format, n, 1), .num_elements = n};
      const auto expected = DenseOracle<C>::decode(inputs);
      for (const Isa isa : supported_isas()) {
        REQUIRE(testing::same_bits(decode(format, isa, inputs), expected));
      }
    }
  });
}

TEST_CASE("decode sums the sections in order and multiplies by the factor") {
  constexpr int64_t kNumElements = 1000;
  for (const DenseFormat& format : dense_formats()) {
    CAPTURE(format.name);
    const auto sections = random_sections(format, kNumElements, 5);
    std::vector<float> sum(kNumElements);
    for (const Bytes& section : sections) {
      const auto decoded = testing::decode_one(format, section, kNumElements);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += decoded[i];
    }
    for (float& value : sum) value *= 0.2f;
    for (const Isa isa : supported_isas()) {
      const auto actual = testing::decode(
          format, isa, {.sections = sections, .num_elements = kNumElements, .factor = 0.2f});
      for (size_t i = 0; i < sum.size(); ++i) {
        // Rotated codecs sum before they rotate back.
        const float tolerance = format.is_rotated ? 2e-6f : 0.0f;
        REQUIRE(std::fabs(actual[i] - sum[i]) <= tolerance);
      }
    }
  }
}

TEST_CASE("a section that is not finite makes the same NaNs and Infs on every instruction set") {
  for (const DenseFormat& format : dense_formats()) {
    for (const int64_t n : {1, 300, 1000}) {
      CAPTURE(format.name);
      CAPTURE(n);
      const auto values = testing::random_values(Values::kNonFinite, n, static_cast<uint64_t>(n));
      const Bytes section = encode(format, Isa::kBaseline, testing::inputs_of(values)).section;
      for (const DType dtype : testing::kAllDTypes) {
        const DecodeInputs inputs{
            .sections = {section, section}, .num_elements = n, .dtype = dtype, .factor = 0.7f};
        const auto expected = decode_bytes(format, Isa::kBaseline, inputs);
        const auto floats = testing::to_floats(dtype, expected);
        for (size_t i = 0; i < values.size(); ++i) {
          if (!std::isfinite(values[i])) REQUIRE_FALSE(std::isfinite(floats[i]));
        }
        for (const Isa isa : supported_isas()) {
          REQUIRE(decode_bytes(format, isa, inputs) == expected);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastcomm
