// Top-k with received payloads that are not finite, or overflow: what is not finite is passed on,
// and the residual is as it was before it came.

#include <cmath>

#include "doctest.h"
#include "topk_sections.h"

namespace fastcomm {
namespace {

using testing::decode_topk;
using testing::encode_topk;
using testing::kInfinity;
using testing::kNaN;
using testing::kTopKElements;
using testing::Sections;
using testing::Values;

// A section with these values at `indices`, among others.
testing::Bytes section_with(uint64_t seed, const std::vector<size_t>& indices, float value) {
  auto gradient = testing::random_values(Values::kNormal, kTopKElements, seed);
  for (const size_t index : indices) gradient[index] = value;
  return encode_topk(gradient);
}

struct Case {
  std::vector<float> gradient = testing::random_values(Values::kNormal, kTopKElements, 12);
  std::vector<float> before = testing::random_values(Values::kNormal, kTopKElements, 13);
  Sections received = {};
};

// By docs/wire_format.md: payload after payload, up to one that makes the sum not finite.
float kept_residual(const Case& inputs, const std::vector<std::vector<float>>& received,
                    size_t index) {
  float residual = inputs.before[index];
  for (const auto& values : received) {
    const float sum = residual + values[index];
    if (!std::isfinite(sum + inputs.gradient[index])) break;
    residual = sum;
  }
  return residual;
}

// At `indices` the sum is not finite and the residual is put back; elsewhere nothing is lost.
void check_put_back(const Case& inputs, const std::vector<size_t>& indices) {
  std::vector<std::vector<float>> received;
  for (const auto& section : inputs.received) received.push_back(decode_topk({section}));
  ThreadPool threads(2);
  for (const Isa isa : supported_isas()) {
    for (ThreadPool* pool : {static_cast<ThreadPool*>(nullptr), &threads}) {
      CAPTURE(isa_name(isa));
      auto residual = inputs.before;
      const auto section = encode_topk(inputs.gradient, residual, {inputs.received, {isa, pool}});
      const auto delivered = decode_topk({section});
      REQUIRE(testing::all_finite(residual));
      for (const size_t index : indices) {
        CAPTURE(index);
        CHECK_FALSE(std::isfinite(delivered[index]));
        CHECK(residual[index] == kept_residual(inputs, received, index));
      }
      auto sum = inputs.before;
      for (const auto& values : received) {
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
      }
      size_t num_non_finite = 0;
      for (size_t i = 0; i < sum.size(); ++i) {
        const float value = inputs.gradient[i] + sum[i];
        num_non_finite += !std::isfinite(value);
        if (!std::isfinite(value)) continue;
        CAPTURE(i);
        REQUIRE(double{delivered[i]} + double{residual[i]} == double{value});
      }
      REQUIRE(num_non_finite == indices.size());
    }
  }
}

TEST_CASE("one payload with NaN and Inf, in both pieces") {
  for (const float value : {kNaN, kInfinity, -kInfinity}) {
    CAPTURE(value);
    check_put_back({.received = {section_with(11, {0, 1234, 131'000}, value)}}, {0, 1234, 131'000});
  }
}

TEST_CASE("several payloads that are not finite in the same and in different places") {
  check_put_back(
      {.received = {section_with(1, {500, 90'000}, kNaN), section_with(2, {90'000, 100}, kInfinity),
                    section_with(3, {70'000}, -kInfinity)}},
      {100, 500, 70'000, 90'000});
}

TEST_CASE("opposite infinities in two payloads") {
  check_put_back(
      {.received = {section_with(1, {77}, kInfinity), section_with(2, {77}, -kInfinity)}}, {77});
}

TEST_CASE("what finite payloads bring there is kept before, and ignored after") {
  const auto finite = section_with(1, {4321, 99'999}, 50.0f);
  const auto non_finite = section_with(2, {4321, 99'999}, kNaN);
  check_put_back({.received = {non_finite, finite}}, {4321, 99'999});
  check_put_back({.received = {finite, non_finite}}, {4321, 99'999});
  check_put_back({.received = {finite, non_finite, finite}}, {4321, 99'999});
}

TEST_CASE("finite values whose sum overflows") {
  const auto huge = section_with(1, {222}, 3e38f);
  check_put_back({.received = {huge, huge}}, {222});
  Case with_gradient{.received = {huge}};
  with_gradient.gradient[222] = 2e38f;
  check_put_back(with_gradient, {222});
  Case with_residual{.received = {huge}};
  with_residual.before[222] = 2e38f;
  check_put_back(with_residual, {222});
}

TEST_CASE("a gradient that is not finite where a value is received, and where none is") {
  Case inputs{.received = {section_with(1, {333}, 40.0f), section_with(2, {333}, 40.0f)}};
  inputs.gradient[333] = kNaN;
  inputs.gradient[111'111] = kInfinity;
  check_put_back(inputs, {333, 111'111});
}

TEST_CASE("more values that are not finite than a section has entries: the residual is put back") {
  const auto other = encode_topk(std::vector<float>(kTopKElements, kNaN));
  Case inputs{.received = {other}};
  inputs.gradient.assign(kTopKElements, kInfinity);
  auto residual = inputs.before;
  const auto section = encode_topk(inputs.gradient, residual, {.received = inputs.received});
  CHECK(testing::same_bits(residual, inputs.before));
  const auto delivered = decode_topk({section});
  CHECK_FALSE(std::isfinite(delivered[0]));
}

TEST_CASE("an encoder's next call does not remember what was put back") {
  TopKEncoder encoder;
  const auto gradient = testing::random_values(Values::kNormal, kTopKElements, 12);
  const auto before = testing::random_values(Values::kNormal, kTopKElements, 13);
  auto residual = before;
  encode_topk(encoder, gradient, residual, {.received = {section_with(1, {5, 50'000}, kNaN)}});
  for (const Sections& received : {Sections{}, Sections{section_with(2, {}, 0)}}) {
    residual = before;
    auto expected_residual = before;
    const auto expected = encode_topk(gradient, expected_residual, {.received = received});
    CHECK(encode_topk(encoder, gradient, residual, {.received = received}) == expected);
    CHECK(testing::same_bits(residual, expected_residual));
  }
}

TEST_CASE("without a residual received values are added in f32 all the same") {
  const auto gradient = testing::random_values(Values::kNormal, kTopKElements, 12);
  std::vector<float> none;
  std::vector<float> zeros(kTopKElements);
  const Sections received{section_with(1, {5, 50'000}, 100.0f), section_with(2, {5}, kNaN)};
  for (const size_t count : {size_t{0}, size_t{1}, size_t{2}}) {
    const Sections some(received.begin(), received.begin() + static_cast<int>(count));
    auto residual = zeros;
    CHECK(encode_topk(gradient, none, {.received = some}) ==
          encode_topk(gradient, residual, {.received = some}));
  }
}

}  // namespace
}  // namespace fastcomm
