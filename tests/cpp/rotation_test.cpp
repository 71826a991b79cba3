// The rotation of the few-bit codecs, seen through what they encode and decode.

#include <bit>
#include <cmath>

#include "dense_oracle.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bytes;
using testing::Values;
using Matrix = std::vector<std::vector<float>>;  // columns

// The sections of `sign` with these signs, all magnitudes 1/2.
Bytes section_of_signs(const std::vector<bool>& is_negative) {
  using Oracle = testing::DenseOracle<Sign>;
  const auto n = static_cast<int64_t>(is_negative.size());
  Bytes section(Oracle::section_bytes(n));
  const uint16_t half = float_to_bf16(0.5f);
  std::memcpy(section.data(), &half, sizeof half);
  for (int64_t i = 0; i < n; ++i) {
    Oracle::store_code(section, {n, 0}, i, is_negative[static_cast<size_t>(i)]);
  }
  return section;
}

// What a block of `count` elements that is 1 at `element` in the rotated basis is rotated back to:
// two sections cancel everywhere else.
std::vector<float> rotated_back(Isa isa, size_t count, size_t element) {
  std::vector<bool> is_negative(count, true);
  is_negative[element] = false;
  return testing::decode(
      dense_format("sign"), isa,
      {.sections = {section_of_signs(std::vector<bool>(count)), section_of_signs(is_negative)},
       .num_elements = static_cast<int64_t>(count)});
}

Matrix inverse_rotation(Isa isa, size_t count) {
  Matrix columns;
  for (size_t i = 0; i < count; ++i) columns.push_back(rotated_back(isa, count, i));
  return columns;
}

// Entry (row, column) by the definition: tails are rotated in pieces, the largest first.
double defined_entry(size_t count, size_t row, size_t column) {
  size_t first = 0;
  size_t size = std::bit_floor(count);
  while (row >= first + size) {
    first += size;
    size = std::bit_floor(count - first);
  }
  if (column < first || column >= first + size) return 0;
  const bool is_negative = std::popcount((row - first) & (column - first)) % 2 != 0;
  const bool is_flipped = testing::signs_of_tests().flips[row] != 0;
  return (is_negative != is_flipped ? -1 : 1) / std::sqrt(static_cast<double>(size));
}

TEST_CASE("the inverse is the signed Hadamard matrix of its definition, for every length") {
  for (const Isa isa : supported_isas()) {
    CAPTURE(isa_name(isa));
    for (size_t count = 1; count <= 256; ++count) {
      CAPTURE(count);
      for (size_t column = 0; column < count; column += count < 64 ? 1 : 7) {
        const auto values = rotated_back(isa, count, column);
        for (size_t row = 0; row < count; ++row) {
          REQUIRE(std::fabs(values[row] - defined_entry(count, row, column)) <= 1e-7);
        }
      }
    }
  }
}

TEST_CASE("the rotation is orthonormal") {
  for (const size_t count : {1, 2, 3, 7, 64, 100, 255, 256}) {
    CAPTURE(count);
    const Matrix columns = inverse_rotation(supported_isas().back(), count);
    for (size_t a = 0; a < count; ++a) {
      for (size_t b = 0; b <= a; ++b) {
        double product = 0;
        for (size_t i = 0; i < count; ++i) product += double{columns[a][i]} * double{columns[b][i]};
        REQUIRE(std::fabs(product - (a == b ? 1 : 0)) <= 1e-6);
      }
    }
  }
}

TEST_CASE("rotating there and back restores the values of every length") {
  for (const DenseFormat& format : dense_formats()) {
    if (!format.is_rotated) continue;
    for (int64_t n = 1; n <= 256; ++n) {
      CAPTURE(format.name);
      CAPTURE(n);
      // Too small to be sent: all of it is rotated, and rotated back into the residual.
      auto values = testing::random_values(Values::kNormal, n, static_cast<uint64_t>(n));
      float largest = 0;
      for (float& value : values) {
        value *= 0x1p-110f;
        largest = std::fmax(largest, std::fabs(value));
      }
      for (const Isa isa : supported_isas()) {
        const auto out = testing::encode(format, isa, testing::inputs_of(values, true));
        for (const float delivered : testing::decode_one(format, out.section, n)) {
          REQUIRE(delivered == 0);
        }
        for (size_t i = 0; i < values.size(); ++i) {
          REQUIRE(std::fabs(out.residual[i] - values[i]) <= 1e-6f * largest);
        }
      }
    }
  }
}

TEST_CASE("the worst that can be rotated back leaves no residual that is not finite") {
  const RotationSigns& signs = testing::signs_of_tests();
  // A few large rotated values and many small ones of the other sign: what is left out of all of
  // them adds up in one element.
  std::vector<float> unit(kRotationElements);
  unit[37] = 1;
  testing::flip_signs(unit, signs);
  testing::hadamard(unit);
  for (int eighth = 8 * 110; eighth < 8 * 124; ++eighth) {
    const float large = std::exp2(static_cast<float>(eighth) / 8);
    CAPTURE(large);
    std::vector<float> values;
    for (size_t i = 0; i < unit.size(); ++i) {
      values.push_back(std::copysign(i < 24 ? large : 0.001f * large, i < 24 ? unit[i] : -unit[i]));
    }
    testing::hadamard(values);
    testing::flip_signs(values, signs);
    for (const DenseFormat& format : dense_formats()) {
      CAPTURE(format.name);
      for (const Isa isa : supported_isas()) {
        REQUIRE(testing::all_finite(
            testing::encode(format, isa, testing::inputs_of(values, true)).residual));
      }
    }
  }
}

TEST_CASE("what is sent are the signs of the rotated values") {
  using Oracle = testing::DenseOracle<Sign>;
  for (int64_t n = 1; n <= 256; ++n) {
    CAPTURE(n);
    const auto values = testing::random_values(Values::kNormal, n, static_cast<uint64_t>(n));
    const auto count = static_cast<size_t>(n);
    const auto out =
        testing::encode(dense_format("sign"), supported_isas().back(), testing::inputs_of(values));
    for (size_t row = 0; row < count; ++row) {
      double rotated = 0;  // the transpose of the inverse
      for (size_t i = 0; i < count; ++i)
        rotated += defined_entry(count, i, row) * double{values[i]};
      if (std::fabs(rotated) < 1e-5) continue;
      REQUIRE((Oracle::load_code(out.section, {n, 0}, static_cast<int64_t>(row)) == 1) ==
              (rotated < 0));
    }
  }
}

TEST_CASE("the signs are Philox bits of the seed") {
  // The lowest bits of the first words of seed 0: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
  const RotationSigns signs = make_rotation_signs(0);
  CHECK(signs.flips[0] == 0x80000000u);
  CHECK(signs.flips[1] == 0x80000000u);
  CHECK(signs.flips[2] == 0);
  CHECK(signs.flips[3] == 0);
  for (const uint32_t seed : {0u, 1u, 2u, 0xffffffffu}) {
    CAPTURE(seed);
    const RotationSigns these = make_rotation_signs(seed);
    const RotationSigns next = make_rotation_signs(seed + 1);
    int num_flips = 0;
    int num_different = 0;
    for (int i = 0; i < kRotationElements; ++i) {
      REQUIRE((these.flips[i] & 0x7fffffffu) == 0);
      num_flips += these.flips[i] != 0;
      num_different += these.flips[i] != next.flips[i];
    }
    // 128 +- 5 standard deviations.
    CHECK(std::abs(num_flips - 128) < 40);
    CHECK(std::abs(num_different - 128) < 40);
  }
}

// The share of the energy of `values` that stays in the residual.
double energy_left_out(const DenseFormat& format, const std::vector<float>& values,
                       const RotationSigns* signs) {
  auto inputs = testing::inputs_of(values, true);
  inputs.signs = signs;
  const auto out = testing::encode(format, supported_isas().back(), inputs);
  double all = 0;
  double left_out = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    all += double{values[i]} * double{values[i]};
    left_out += double{out.residual[i]} * double{out.residual[i]};
  }
  return left_out / all;
}

TEST_CASE("int2 and sign leave out what is known for normal values, whatever the values are") {
  constexpr int64_t kNumElements = 256 * 1000;
  const auto normal = testing::random_values(Values::kNormal, kNumElements, 1);
  std::vector<float> heavy_tails = normal;
  for (float& value : heavy_tails) value = value * value * value;
  std::vector<float> sparse(kNumElements);
  for (size_t i = 0; i < sparse.size(); i += 11) sparse[i] = normal[i];
  const std::pair<std::string_view, double> expected[] = {{"int2", 0.1188}, {"sign", 0.3634}};
  for (const auto& [name, share] : expected) {
    CAPTURE(name);
    const DenseFormat& format = dense_format(name);
    for (const auto& values : {normal, heavy_tails, sparse}) {
      CHECK(energy_left_out(format, values, &testing::signs_of_tests()) ==
            doctest::Approx(share).epsilon(0.015));
    }
    // What the rotation is for: without it, heavy tails are left out.
    CHECK(energy_left_out(format, heavy_tails, nullptr) > 1.5 * share);
  }
}

}  // namespace
}  // namespace fastcomm
