// Top-k sections: what is encoded is decoded, the rest stays in the residual, damage is refused.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codecs/sparse/topk.h"
#include "doctest.h"
#include "values.h"

namespace fastcomm {
namespace {

using testing::Values;

constexpr int64_t kNumElements = 2 * 65536 + 1003;
constexpr int64_t kCount = 1321;
constexpr size_t kOffsetsBegin = 16;  // behind the counts of three sub-blocks

std::vector<std::byte> encode(std::vector<float>& gradient, std::vector<float>& residual,
                              std::span<const std::byte> received = {}, Isa isa = active_isa(),
                              int64_t k = kCount) {
  const auto n = static_cast<int64_t>(gradient.size());
  // Two pieces: the index space runs on from one to the next.
  const int64_t cut = n / 3;
  float* const second = residual.empty() ? nullptr : residual.data() + cut;
  const TopKPiece pieces[] = {{gradient.data(), residual.empty() ? nullptr : residual.data(), cut},
                              {gradient.data() + cut, second, n - cut}};
  std::vector<std::byte> section(static_cast<size_t>(topk_section_bytes(k, n)), std::byte{0xa5});
  TopKEncoder().encode(isa, DType::kFloat32, pieces, k, received, section);
  return section;
}

std::vector<float> decode(const std::vector<const std::byte*>& sections, float factor = 1,
                          int64_t n = kNumElements, int64_t k = kCount) {
  std::vector<float> out(static_cast<size_t>(n), testing::kNaN);
  const TopKDecoder::OutPiece pieces[] = {{out.data(), 100'000},
                                          {out.data() + 100'000, n - 100'000}};
  TopKDecoder().decode(active_isa(), DType::kFloat32, pieces, k, factor, sections);
  return out;
}

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
  auto gradient = testing::random_values(Values::kNormal, kNumElements, 1);
  const auto before = testing::random_values(Values::kNormal, kNumElements, 2);
  auto other = testing::random_values(Values::kNormal, kNumElements, 3);
  std::vector<float> none;
  const auto received = encode(other, none);
  const auto received_values = decode({received.data()});
  for (const bool has_received : {false, true}) {
    auto residual = before;
    const auto section =
        encode(gradient, residual, has_received ? std::span(received) : std::span<std::byte>{});
    const auto delivered = decode({section.data()});
    int64_t num_delivered = 0;
    for (size_t i = 0; i < gradient.size(); ++i) {
      const float sum = has_received ? before[i] + received_values[i] : before[i];
      REQUIRE(double{delivered[i]} + double{residual[i]} == double{gradient[i] + sum});
      num_delivered += delivered[i] != 0;
    }
    CHECK(num_delivered == kCount);
  }
}

TEST_CASE("every instruction set writes the bytes of the baseline") {
  for (const Values kind : testing::kAllValues) {
    CAPTURE(static_cast<int>(kind));
    auto gradient = testing::random_values(kind, kNumElements, 4);
    const auto before = testing::random_values(Values::kNormal, kNumElements, 5);
    auto other = testing::random_values(kind, kNumElements, 6);
    std::vector<float> none;
    const auto received = encode(other, none);
    auto expected_residual = before;
    const auto expected = encode(gradient, expected_residual, received, Isa::kBaseline);
    const auto without_feedback = encode(gradient, none, received, Isa::kBaseline);
    for (const Isa isa : supported_isas()) {
      auto residual = before;
      CHECK(encode(gradient, residual, received, isa) == expected);
      CHECK(testing::same_bits(residual, expected_residual));
      CHECK(encode(gradient, none, received, isa) == without_feedback);
    }
  }
}

TEST_CASE("sections are summed in order, times the factor") {
  std::vector<std::vector<std::byte>> sections;
  std::vector<float> sum(kNumElements);
  std::vector<const std::byte*> pointers;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    auto gradient = testing::random_values(Values::kNormal, kNumElements, seed);
    std::vector<float> none;
    sections.push_back(encode(gradient, none));
    const auto decoded = decode({sections.back().data()});
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += decoded[i];
  }
  for (const auto& section : sections) pointers.push_back(section.data());
  for (float& value : sum) value *= 0.25f;
  CHECK(testing::same_bits(decode(pointers, 0.25f), sum));
}

TEST_CASE("fewer values than k are sent as they are, and the rest of the section is zero") {
  std::vector<float> gradient(kNumElements);
  gradient[5] = 1;
  gradient[70'000] = -2;
  std::vector<float> residual(kNumElements);
  const auto section = encode(gradient, residual);
  CHECK(decode({section.data()}) == gradient);
  const auto num_bytes_set = std::count_if(section.begin(), section.end(),
                                           [](std::byte byte) { return byte != std::byte{0}; });
  // Two counts of 1, the offsets 5 and 4464 (two bytes), bf16 1 (two bytes) and -2 (one byte).
  CHECK(num_bytes_set == 2 + 1 + 2 + 2 + 1);
}

TEST_CASE("a received NaN is passed on, and the residual keeps its previous value there") {
  auto other = testing::random_values(Values::kNormal, kNumElements, 11);
  other[1234] = testing::kNaN;
  other[100'000] = testing::kInfinity;
  std::vector<float> none;
  const auto received = encode(other, none);
  auto gradient = testing::random_values(Values::kNormal, kNumElements, 12);
  const auto before = testing::random_values(Values::kNormal, kNumElements, 13);
  auto residual = before;
  const auto section = encode(gradient, residual, received);
  const auto delivered = decode({section.data()});
  for (const size_t index : {size_t{1234}, size_t{100'000}}) {
    CAPTURE(index);
    CHECK_FALSE(std::isfinite(delivered[index]));
    CHECK(residual[index] == before[index]);
  }
  CHECK(std::all_of(residual.begin(), residual.end(), [](float v) { return std::isfinite(v); }));
}

TEST_CASE("malformed sections are refused before they lead out of bounds") {
  auto gradient = testing::random_values(Values::kNormal, kNumElements, 14);
  std::vector<float> residual(kNumElements);
  auto section = encode(gradient, residual);
  auto store_u16 = [&](size_t at, uint16_t value) { std::memcpy(&section[at], &value, 2); };
  auto store_u32 = [&](size_t at, uint32_t value) { std::memcpy(&section[at], &value, 4); };
  const char* why = "";
  bool is_order = false;
  SUBCASE("more entries than announced") {
    store_u32(0, kCount + 1);
    why = "counts 1322 entries where at most 1321 were announced";
  }
  SUBCASE("a count that would wrap around") {
    store_u32(4, 0xffffffffu);
    why = "entries where at most";
  }
  SUBCASE("an offset beyond the last, short sub-block") {
    store_u16(kOffsetsBegin + 2 * kCount - 2, 1003);
    why = "offset 1003 in a sub-block of 1003 elements";
  }
  SUBCASE("offsets out of order") {
    store_u16(kOffsetsBegin, 65535);
    why = "after 65535";
    is_order = true;
  }
  CAPTURE(why);
  std::vector<float> none;
  CHECK_THROWS_WITH_AS(encode(gradient, residual, section), doctest::Contains(why), PayloadError);
  CHECK_THROWS_WITH_AS(encode(gradient, none, section), doctest::Contains(why), PayloadError);
  // The order matters only to what walks the residual along.
  if (!is_order) {
    CHECK_THROWS_WITH_AS(decode({section.data()}), doctest::Contains(why), PayloadError);
  }
}

}  // namespace
}  // namespace fastcomm
