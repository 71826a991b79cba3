// Stochastic rounding: the expectation is the value, and the random numbers are pure functions.

#include <cmath>
#include <numeric>

#include "dense_oracle.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bytes;
using testing::Values;

// Calls visit(codec) for the codecs that can round at random.
template <class Visit>
void for_each_stochastic_codec(Visit&& visit) {
  testing::for_each_dense_codec([&]<class C>(C codec) {
    if constexpr (StochasticCodec<C>) {
      CAPTURE(C::kName);
      visit(codec);
    }
  });
}

Bytes encode_noisy(const DenseFormat& format, const std::vector<float>& values,
                   const RoundingNoise& noise) {
  auto inputs = testing::inputs_of(values);
  inputs.noise = &noise;
  return testing::encode(format, supported_isas().back(), inputs).section;
}

std::vector<float> round_noisily(const DenseFormat& format, const std::vector<float>& values,
                                 const RoundingNoise& noise) {
  return testing::decode_one(format, encode_noisy(format, values, noise),
                             static_cast<int64_t>(values.size()));
}

TEST_CASE("int8 and int4 can round at random") {
  for (const DenseFormat& format : dense_formats()) {
    CAPTURE(format.name);
    const bool is_integer = format.name == "int8" || format.name == "int4";
    if (is_integer) CHECK(format.has_stochastic_rounding);
    if (format.is_rotated || !format.has_scale) CHECK_FALSE(format.has_stochastic_rounding);
  }
}

TEST_CASE("the mean over many steps is the value, of every element and over all") {
  constexpr uint32_t kNumSteps = 3000;
  for_each_stochastic_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    const auto values = testing::random_values(Values::kNormal, C::kBlockElements, 1);
    const testing::DenseOracle<C> oracle;
    const auto section = encode_noisy(format, values, {});
    uint16_t wire_scale;
    std::memcpy(&wire_scale, section.data(), sizeof wire_scale);
    const double step_size = oracle.scale_of(wire_scale).scale;
    std::vector<double> errors(values.size());
    for (uint32_t step = 0; step < kNumSteps; ++step) {
      const auto rounded = round_noisily(format, values, {7, 0, step, 0, 0});
      for (size_t i = 0; i < values.size(); ++i) {
        const double error = double{rounded[i]} - double{values[i]};
        // Up or down, never further.
        REQUIRE(std::fabs(error) < step_size * (1 + 0x1p-14));
        errors[i] += error / kNumSteps;
      }
    }
    // An error is at most half a step from its mean; 5.5 standard deviations; random words of 15
    // bits, whose last one is rounded.
    const double deviation = 0.5 * step_size / std::sqrt(double{kNumSteps});
    for (const double error : errors) REQUIRE(std::fabs(error) <= 5.5 * deviation);
    const auto num_errors = static_cast<double>(errors.size());
    const double mean = std::accumulate(errors.begin(), errors.end(), 0.0) / num_errors;
    CHECK(std::fabs(mean) <= 5.5 * deviation / std::sqrt(num_errors) + step_size * 0x1p-16);
  });
}

TEST_CASE("elements round up independently, with the probability of their fraction") {
  for_each_stochastic_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    constexpr size_t kNumElements = 256 * 400;
    for (const float fraction : {0.0625f, 0.25f, 0.5f, 0.875f}) {
      CAPTURE(fraction);
      // A scale of 1: of each block, one element is the largest level.
      std::vector<float> values(kNumElements, 1 + fraction);
      for (size_t i = 0; i < values.size(); i += C::kBlockElements) values[i] = C::kLevels;
      const auto rounded = round_noisily(format, values, {3, 1, 4, 1, 5});
      double num_up = 0;
      std::vector<double> num_pairs(130);  // of elements at a distance that both go up
      for (size_t i = 0; i < values.size(); ++i) {
        if (i % C::kBlockElements == 0) continue;
        REQUIRE((rounded[i] == 1 || rounded[i] == 2));
        num_up += rounded[i] == 2;
        for (const size_t distance : {1, 2, 64, 128}) {
          num_pairs[distance] += i >= distance && rounded[i] == 2 && rounded[i - distance] == 2;
        }
      }
      const double n = kNumElements;
      CHECK(std::fabs(num_up / n - fraction) < 5 * 0.5 / std::sqrt(n) + 1.0 / C::kBlockElements);
      for (const size_t distance : {1, 2, 64, 128}) {
        CHECK(std::fabs(num_pairs[distance] / n - fraction * fraction) <
              5 * 0.5 / std::sqrt(n) + 2.0 / C::kBlockElements);
      }
    }
  });
}

TEST_CASE("values at a level stay there, the largest too") {
  for_each_stochastic_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    std::vector<float> values;
    for (int level = -C::kLevels; level <= C::kLevels; ++level) {
      values.push_back(0.125f * static_cast<float>(level));
    }
    for (uint32_t step = 0; step < 500; ++step) {
      REQUIRE(round_noisily(format, values, {1, 2, step, 3, 4}) == values);
    }
  });
}

TEST_CASE("no code exceeds the levels, whatever the block's largest magnitude is") {
  for_each_stochastic_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    testing::Random random(1);
    for (uint32_t step = 0; step < 20'000; ++step) {
      const float largest = std::ldexp(1 + static_cast<float>(random.below(1 << 23)) * 0x1p-23f,
                                       static_cast<int>(random.below(200)) - 95);
      const auto section = encode_noisy(format, {largest, -largest}, {0, 0, step, 0, 0});
      const typename testing::DenseOracle<C>::Block block(2, 0);
      for (const int64_t i : {0, 1}) {
        const uint32_t code = testing::DenseOracle<C>::load_code(section, block, i);
        const float level = C::dequantize(code, {1, 1});
        REQUIRE(std::fabs(level) <= C::kLevels);
        REQUIRE((level > 0) == (i == 0));
      }
    }
  });
}

TEST_CASE("other ranks, steps, buckets and seeds round differently; the same ones alike") {
  for_each_stochastic_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    const auto values = testing::random_values(Values::kNormal, 5000, 1);
    const RoundingNoise usual{10, 1, 20, 2, 0};
    const auto expected = encode_noisy(format, values, usual);
    CHECK(encode_noisy(format, values, usual) == expected);
    for (const RoundingNoise& other : {RoundingNoise{11, 1, 20, 2, 0},
                                       {10, 2, 20, 2, 0},
                                       {10, 1, 21, 2, 0},
                                       {10, 1, 20, 3, 0},
                                       {1, 10, 20, 2, 0}}) {
      const auto rounded = testing::decode_one(format, encode_noisy(format, values, other), 5000);
      const auto rounded_usually = testing::decode_one(format, expected, 5000);
      int num_different = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        num_different += rounded[i] != rounded_usually[i];
      }
      // Of two independent roundings a third differs.
      CHECK(num_different > 1300);
      CHECK(num_different < 2000);
    }
  });
}

TEST_CASE("received values are rounded along, without bias") {
  constexpr uint32_t kNumSteps = 500;
  for_each_stochastic_codec([]<class C>(C) {
    const DenseFormat& format = dense_format(C::kName);
    const auto values = testing::random_values(Values::kNormal, 1000, 1);
    const auto others = testing::random_values(Values::kNormal, 1000, 2);
    const Bytes received = encode_noisy(format, others, {});
    const auto received_values = testing::decode_one(format, received, 1000);
    double error = 0;
    double squares = 0;
    for (uint32_t step = 0; step < kNumSteps; ++step) {
      const RoundingNoise noise{1, 0, step, 0, 0};
      auto inputs = testing::inputs_of(values);
      inputs.received = {received};
      inputs.noise = &noise;
      const auto section = testing::encode(format, supported_isas().back(), inputs).section;
      const auto rounded = testing::decode_one(format, section, 1000);
      for (size_t i = 0; i < values.size(); ++i) {
        const double left_out = double{values[i] + received_values[i]} - double{rounded[i]};
        error += left_out;
        squares += left_out * left_out;
      }
    }
    CHECK(squares > 0);
    CHECK(std::fabs(error) <= 5.5 * std::sqrt(squares));
  });
}

}  // namespace
}  // namespace fastcomm
