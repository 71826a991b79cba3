// Top-k sections: what is encoded is decoded, the rest stays in the residual, damage is refused.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codecs/payload.h"
#include "doctest.h"
#include "topk_sections.h"

namespace fastcomm {
namespace {

using testing::decode_topk;
using testing::encode_topk;
using testing::kTopKCount;
using testing::kTopKElements;
using testing::Values;

constexpr size_t kOffsetsBegin = 16;  // behind the counts of three sub-blocks

TEST_CASE("k is the rounded share, at least one element, none of nothing") {
  CHECK(topk_count(0.01, 1000) == 10);
  CHECK(topk_count(0.01, 1049) == 10);
  CHECK(topk_count(0.01, 1051) == 11);
  CHECK(topk_count(0.001, 10) == 1);
  CHECK(topk_count(0.001, 0) == 0);
  CHECK(topk_count(1.0, 7) == 7);
  CHECK(topk_section_bytes(0, 0) == 0);
}

TEST_CASE("decode(section) + residual is bit-exactly the accumulated value") {
  const auto gradient = testing::random_values(Values::kNormal, kTopKElements, 1);
  const auto before = testing::random_values(Values::kNormal, kTopKElements, 2);
  testing::Sections received;
  auto sum = before;
  for (uint64_t num_received = 0; num_received <= 3; ++num_received) {
    CAPTURE(num_received);
    auto residual = before;
    const auto section = encode_topk(gradient, residual, {.received = received});
    const auto delivered = decode_topk({section});
    int64_t num_delivered = 0;
    for (size_t i = 0; i < gradient.size(); ++i) {
      REQUIRE(double{delivered[i]} + double{residual[i]} == double{gradient[i] + sum[i]});
      num_delivered += delivered[i] != 0;
    }
    CHECK(num_delivered == kTopKCount);
    received.push_back(
        encode_topk(testing::random_values(Values::kNormal, kTopKElements, 10 + num_received)));
    const auto next = decode_topk({received.back()});
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += next[i];
  }
}

TEST_CASE("every instruction set and number of threads writes the same bytes") {
  ThreadPool two(2);
  ThreadPool three(3);
  for (const Values kind : testing::kAllValues) {
    CAPTURE(static_cast<int>(kind));
    const auto gradient = testing::random_values(kind, kTopKElements, 4);
    const auto before = testing::random_values(Values::kNormal, kTopKElements, 5);
    const testing::Sections received{
        encode_topk(testing::random_values(kind, kTopKElements, 6)),
        encode_topk(testing::random_values(Values::kNormal, kTopKElements, 7))};
    const TopKExecution baseline{Isa::kBaseline, nullptr};
    auto expected_residual = before;
    const auto expected = encode_topk(gradient, expected_residual, {received, baseline});
    std::vector<float> none;
    const auto without_feedback = encode_topk(gradient, none, {received, baseline});
    const auto decoded = decode_topk({expected, received[0], received[1]}, 0.5f, baseline);
    for (const Isa isa : supported_isas()) {
      for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &two, &three}) {
        CAPTURE(isa_name(isa));
        auto residual = before;
        CHECK(encode_topk(gradient, residual, {received, {isa, threads}}) == expected);
        CHECK(testing::same_bits(residual, expected_residual));
        CHECK(encode_topk(gradient, none, {received, {isa, threads}}) == without_feedback);
        CHECK(testing::same_bits(
            decode_topk({expected, received[0], received[1]}, 0.5f, {isa, threads}), decoded));
      }
    }
  }
}

TEST_CASE("sections are summed in order, times the factor") {
  testing::Sections sections;
  std::vector<float> sum(kTopKElements);
  for (uint64_t seed = 0; seed < 3; ++seed) {
    sections.push_back(encode_topk(testing::random_values(Values::kNormal, kTopKElements, seed)));
    const auto decoded = decode_topk({sections.back()});
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += decoded[i];
  }
  for (float& value : sum) value *= 0.25f;
  CHECK(testing::same_bits(decode_topk(sections, 0.25f), sum));
}

TEST_CASE("fewer values than k are sent as they are, and the rest of the section is zero") {
  std::vector<float> gradient(kTopKElements);
  gradient[5] = 1;
  gradient[70'000] = -2;
  std::vector<float> residual(kTopKElements);
  const auto section = encode_topk(gradient, residual);
  CHECK(decode_topk({section}) == gradient);
  const auto num_bytes_set = std::count_if(section.begin(), section.end(),
                                           [](std::byte byte) { return byte != std::byte{0}; });
  // Two counts of 1, the offsets 5 and 4464 (two bytes), bf16 1 (two bytes) and -2 (one byte).
  CHECK(num_bytes_set == 2 + 1 + 2 + 2 + 1);
}

TEST_CASE("malformed sections are refused before they lead out of bounds") {
  auto gradient = testing::random_values(Values::kNormal, kTopKElements, 14);
  std::vector<float> residual(kTopKElements);
  auto section = encode_topk(gradient, residual);
  auto store_u16 = [&](size_t at, uint16_t value) { std::memcpy(&section[at], &value, 2); };
  auto store_u32 = [&](size_t at, uint32_t value) { std::memcpy(&section[at], &value, 4); };
  const char* why = "";
  bool is_order = false;
  SUBCASE("more entries than announced") {
    store_u32(0, kTopKCount + 1);
    why = "counts 1322 entries where at most 1321 were announced";
  }
  SUBCASE("a count that would wrap around") {
    store_u32(4, 0xffffffffu);
    why = "entries where at most";
  }
  SUBCASE("an offset beyond the last, short sub-block") {
    store_u16(kOffsetsBegin + 2 * kTopKCount - 2, 1003);
    why = "offset 1003 in a sub-block of 1003 elements";
  }
  SUBCASE("offsets out of order") {
    store_u16(kOffsetsBegin, 65535);
    why = "after 65535";
    is_order = true;
  }
  CAPTURE(why);
  ThreadPool threads(2);
  const auto healthy = encode_topk(gradient);
  const auto residual_before = residual;
  for (ThreadPool* pool : {static_cast<ThreadPool*>(nullptr), &threads}) {
    const TopKExecution execution{active_isa(), pool};
    std::vector<float> none;
    for (std::vector<float>* feedback : {&residual, &none}) {
      CHECK_THROWS_WITH_AS(encode_topk(gradient, *feedback, {{section}, execution}),
                           doctest::Contains(why), PayloadError);
      CHECK_THROWS_WITH_AS(encode_topk(gradient, *feedback, {{healthy, section}, execution}),
                           doctest::Contains(why), PayloadError);
    }
    CHECK(testing::same_bits(residual, residual_before));
    // The order matters only to what walks the residual along.
    if (is_order) continue;
    CHECK_THROWS_WITH_AS(decode_topk({section}, 1, execution), doctest::Contains(why),
                         PayloadError);
    CHECK_THROWS_WITH_AS(decode_topk({healthy, section}, 1, execution), doctest::Contains(why),
                         PayloadError);
  }
}

}  // namespace
}  // namespace fastcomm
