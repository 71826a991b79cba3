// The loops of every dense codec and instruction set against the definition, element by element.

#include "dense_oracle.h"

#include "doctest.h"

namespace fastcomm {
namespace {

using testing::DecodeInputs;
using testing::DenseOracle;
using testing::EncodeInputs;
using testing::Values;

void check_same(const testing::Encoded& actual, const testing::Encoded& expected) {
  REQUIRE(testing::same_bits(actual.section, expected.section));
  REQUIRE(testing::same_bits(actual.residual, expected.residual));
}

TEST_CASE("encode writes the codes, scales and residuals of the definition") {
  testing::for_each_dense_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    testing::for_each_inputs(format, [&](const EncodeInputs& inputs) {
      const testing::Encoded expected = DenseOracle<C>::encode(inputs);
      for (const Isa isa : supported_isas()) {
        CAPTURE(isa_name(isa));
        check_same(encode(format, isa, inputs), expected);
        if (inputs.num_elements <= 2 * format.block_elements) continue;
        check_same(encode(format, isa, inputs, 1), expected);
        check_same(encode(format, isa, inputs, 2), expected);
      }
    });
  });
}

TEST_CASE("decode gives the sum of the definition, times the factor, in the dtype") {
  testing::for_each_dense_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    testing::for_each_inputs(format, [&](const EncodeInputs& inputs) {
      if (inputs.received.empty()) return;
      const DecodeInputs decoded{.sections = inputs.received,
                                 .num_elements = inputs.num_elements,
                                 .dtype = inputs.dtype,
                                 .factor = 0.7f};
      const auto expected = testing::with_one_nan(DenseOracle<C>::decode(decoded));
      for (const Isa isa : supported_isas()) {
        CAPTURE(isa_name(isa));
        REQUIRE(testing::same_bits(testing::with_one_nan(decode(format, isa, decoded)), expected));
        REQUIRE(
            testing::same_bits(testing::with_one_nan(decode(format, isa, decoded, 1)), expected));
      }
    });
  });
}

TEST_CASE("the same with another seed of the rotation, and without one") {
  const RotationSigns other = make_rotation_signs(0xffffffffu);
  for (const RotationSigns* signs : {&other, static_cast<const RotationSigns*>(nullptr)}) {
    testing::for_each_dense_codec([&]<class C>(C) {
      if (!C::kIsRotated) return;
      const DenseFormat& format = dense_format(C::kName);
      for (const int64_t n : {1, 13, 255, 256, 1000}) {
        CAPTURE(format.name);
        CAPTURE(n);
        EncodeInputs inputs =
            testing::inputs_of(testing::random_values(Values::kNormal, n, 1), true);
        inputs.signs = signs;
        const testing::Encoded expected = DenseOracle<C>::encode(inputs);
        const DecodeInputs decoded{
            .sections = {expected.section, expected.section}, .num_elements = n, .signs = signs};
        for (const Isa isa : supported_isas()) {
          check_same(encode(format, isa, inputs), expected);
          REQUIRE(
              testing::same_bits(decode(format, isa, decoded), DenseOracle<C>::decode(decoded)));
        }
      }
    });
  }
}

TEST_CASE("stochastic rounding uses the random words of the definition") {
  const RoundingNoise noises[] = {
      {.seed = 1, .rank = 2, .step = 3, .bucket = 4, .first_element = 0},
      {.seed = ~0u, .rank = 0, .step = ~0u, .bucket = 65535, .first_element = 0xffff'ff80},
      {.seed = 0, .rank = 1, .step = 0, .bucket = 0, .first_element = 777}};
  testing::for_each_dense_codec([&]<class C>(C) {
    if (!StochasticCodec<C>) return;
    const DenseFormat& format = dense_format(C::kName);
    testing::for_each_inputs(format, [&](const EncodeInputs& inputs) {
      if (!inputs.residual.empty()) return;
      EncodeInputs noisy = inputs;
      noisy.noise = &noises[inputs.num_elements % 3];
      const testing::Encoded expected = DenseOracle<C>::encode(noisy);
      for (const Isa isa : supported_isas()) {
        CAPTURE(isa_name(isa));
        check_same(encode(format, isa, noisy), expected);
        check_same(encode(format, isa, noisy, 1), expected);
      }
    });
  });
}

}  // namespace
}  // namespace fastcomm
