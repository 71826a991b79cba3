// Momentum correction of a bucket in host memory, and which velocities an encoding sets to zero.

#include "codecs/velocity/velocity.h"

#include <cmath>

#include "buckets.h"
#include "codecs/velocity/kernels.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bucket;
using testing::BucketOptions;
using testing::Bytes;
using testing::Values;

struct Correction {
  DType dtype;
  Bytes gradient;
  std::vector<float> velocity;
  std::vector<float> residual;

  BucketMemory memory() {
    return {gradient.data(), dtype, residual.data(), static_cast<int64_t>(residual.size()),
            velocity.data()};
  }
};

bool operator==(const Correction& a, const Correction& b) {
  return a.gradient == b.gradient && testing::same_bits(a.velocity, b.velocity) &&
         testing::same_bits(a.residual, b.residual);
}

Correction random_correction(DType dtype, Values kind, int64_t num_elements) {
  const auto values = [&](Values some, uint64_t seed) {
    return testing::random_values(some, num_elements, seed);
  };
  // Velocities and residuals are finite; huge ones may overflow.
  const Values finite = kind == Values::kNonFinite ? Values::kNormal : kind;
  return {dtype, testing::to_dtype(dtype, values(kind, 1)), values(finite, 2), values(finite, 3)};
}

// What element.h says, in plain words.
Correction expected_correction(Correction given, const Momentum& momentum) {
  auto gradient = testing::to_floats(given.dtype, given.gradient);
  for (size_t i = 0; i < gradient.size(); ++i) {
    const float velocity = momentum.factor * given.velocity[i] + gradient[i];
    const float update = momentum.is_nesterov ? gradient[i] + momentum.factor * velocity : velocity;
    const float residual = given.residual[i] + update;
    if (std::isfinite(velocity) && std::isfinite(update) && std::isfinite(residual)) {
      given.velocity[i] = std::abs(velocity) < 0x1p-100f ? 0 : velocity;
      given.residual[i] = residual;
      gradient[i] = 0;
    } else {
      gradient[i] = std::isnan(update) ? testing::kNaN : update;
    }
  }
  given.gradient = testing::to_dtype(given.dtype, gradient);
  return given;
}

template <class Visit>
void for_each_momentum(Visit&& visit) {
  for (const float factor : {0.9f, 0.0f, 1.0f}) {
    for (const bool is_nesterov : {false, true}) {
      CAPTURE(factor);
      CAPTURE(is_nesterov);
      visit(Momentum{factor, is_nesterov});
    }
  }
}

TEST_CASE("every instruction set has the bits of the plain formula") {
  for (const Isa isa : supported_isas()) {
    for (const DType dtype : testing::kAllDTypes) {
      for (const Values kind : testing::kAllValues) {
        for (const int64_t num_elements : {0, 1, 33, 1003}) {
          CAPTURE(isa_name(isa));
          CAPTURE(static_cast<int>(dtype));
          CAPTURE(static_cast<int>(kind));
          CAPTURE(num_elements);
          for_each_momentum([&](const Momentum& momentum) {
            Correction given = random_correction(dtype, kind, num_elements);
            const Correction expected = expected_correction(given, momentum);
            velocity_kernel(isa)(dtype, {given.gradient.data(), given.velocity.data(),
                                         given.residual.data(), num_elements, momentum});
            REQUIRE(given == expected);
          });
        }
      }
    }
  }
}

TEST_CASE("results do not depend on the threads") {
  const Momentum momentum{0.9f, false};
  for (const DType dtype : testing::kAllDTypes) {
    for (const Values kind : {Values::kNormal, Values::kNonFinite}) {
      Correction given = random_correction(dtype, kind, 200'003);
      const Correction expected = expected_correction(given, momentum);
      const Correction before = given;
      accumulate_velocity(given.memory(), momentum, nullptr);
      REQUIRE(given == expected);
      for (const int num_threads : {1, 2, 3}) {
        ThreadPool threads(num_threads);
        given = before;
        accumulate_velocity(given.memory(), momentum, &threads);
        REQUIRE(given == expected);
      }
    }
  }
}

TEST_CASE("what is not finite stays visible, and spoils neither velocity nor residual") {
  for (const DType dtype : testing::kAllDTypes) {
    for (const float spoilt : {testing::kNaN, testing::kInfinity, -testing::kInfinity}) {
      Correction given{dtype, testing::to_dtype(dtype, {{spoilt}}), {2.0f}, {3.0f}};
      accumulate_velocity(given.memory(), {0.9f, false}, nullptr);
      CHECK_FALSE(testing::all_finite(testing::to_floats(dtype, given.gradient)));
      CHECK(given.velocity[0] == 2.0f);
      CHECK(given.residual[0] == 3.0f);
    }
  }
  // Finite, but the residual has no room for it: it is sent beside the residual.
  Correction given{DType::kFloat32, testing::to_dtype(DType::kFloat32, {{1e38f}}), {0}, {3e38f}};
  accumulate_velocity(given.memory(), {0.9f, false}, nullptr);
  CHECK(testing::to_floats(DType::kFloat32, given.gradient)[0] == 1e38f);
  CHECK(given.velocity[0] == 0);
  CHECK(given.residual[0] == 3e38f);
}

TEST_CASE("velocities without gradients decay to zero") {
  Correction given{DType::kFloat32,
                   testing::to_dtype(DType::kFloat32, std::vector<float>{0.0f}),
                   {1.0f},
                   {0.0f}};
  for (int step = 0; step < 1000; ++step) {
    accumulate_velocity(given.memory(), {0.9f, false}, nullptr);
  }
  CHECK(given.velocity[0] == 0);
}

TEST_CASE("a velocity without a residual is an error") {
  float value = 1;
  const BucketMemory memory{&value, DType::kFloat32, nullptr, 1, &value};
  CHECK_THROWS_WITH_AS(accumulate_velocity(memory, {0.9f, false}, nullptr),
                       doctest::Contains("needs a residual"), Error);
}

// Encodings by the sparse codecs of a bucket with two of them, int8 and fp32.
void check_masking(BucketOptions options, Values kind, bool has_residual, int num_received) {
  CAPTURE(static_cast<int>(options.dtype));
  CAPTURE(static_cast<int>(kind));
  CAPTURE(has_residual);
  CAPTURE(num_received);
  constexpr int64_t kNumElements = 30'000;
  options.codec = {"topk", 0.02};
  options.runs = {{9000, 0}, {700, 2}, {0, 0}, {10'000, 1}, {800, 3}, {9500, 0}};
  options.other_codecs = {{"topk", 0.1}, {"int8"}, {"fp32"}};
  const auto velocity = testing::random_values(Values::kNormal, kNumElements, 3);
  const auto residual = has_residual ? testing::random_values(Values::kNormal, kNumElements, 2)
                                     : std::vector<float>{};
  std::vector<Bytes> received;
  for (int i = 0; i < num_received; ++i) {
    const auto values = testing::random_values(kind, kNumElements, 10 + static_cast<uint64_t>(i));
    received.push_back(Bucket(options, values, {}).encode());
  }
  const auto gradient = testing::random_values(kind, kNumElements, 1);
  Bucket bucket(options, gradient, residual, velocity);
  const Bytes payload = bucket.encode(received);
  Bucket without(options, gradient, residual);
  REQUIRE(without.encode(received) == payload);
  REQUIRE(testing::same_bits(without.residual(), bucket.residual()));

  BucketOptions decoded = options;
  decoded.dtype = DType::kFloat32;
  const auto sent = Bucket(decoded, gradient, {}).decode({payload});
  int64_t num_masked = 0;
  size_t i = 0;
  for (const Run& run : options.runs) {
    for (const size_t end = i + static_cast<size_t>(run.num_elements); i < end; ++i) {
      const bool is_masked = run.codec <= 1 && sent[i] != 0 && std::isfinite(sent[i]);
      num_masked += is_masked;
      CAPTURE(i);
      REQUIRE(bucket.velocity()[i] == (is_masked ? 0.0f : velocity[i]));
    }
  }
  REQUIRE(num_masked > 0);
  REQUIRE(num_masked <= 1370);  // k of both
}

TEST_CASE("velocities of what a sparse section holds become zero, and no others") {
  for (const DType dtype : testing::kAllDTypes) {
    for (const Values kind : {Values::kNormal, Values::kHalves, Values::kNonFinite}) {
      for (const int num_received : {0, 1, 2}) {
        check_masking({.dtype = dtype}, kind, true, num_received);
        check_masking({.dtype = dtype, .num_threads = 2}, kind, false, num_received);
      }
    }
  }
}

}  // namespace
}  // namespace fastcomm
