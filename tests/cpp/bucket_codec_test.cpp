// A bucket with runs that are compressed and runs that are not.

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "buckets.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Values;

TEST_CASE("wire ids and names are unique") {
  std::set<int> ids{kTopKWireId};
  std::set<std::string_view> names{"topk"};
  for (const DenseFormat& format : dense_formats()) {
    CAPTURE(format.name);
    CHECK(ids.insert(format.wire_id).second);
    CHECK(names.insert(format.name).second);
    CHECK(format.wire_id < 64);
  }
}

TEST_CASE("runs that do not cover the bucket, and codecs that cannot be, are errors") {
  std::vector<float> gradient(100);
  CodecWorkspace workspace;
  const BucketMemory memory{gradient.data(), DType::kFloat32, nullptr, 100};
  CHECK_THROWS_WITH_AS(
      BucketCodec({{"int8"}, {"fp32"}}, memory, {{60, 0}, {39, 1}}, 1, 0, workspace),
      doctest::Contains("cover 99 elements of a bucket of 100"), Error);
  CHECK_THROWS_WITH_AS(BucketCodec({{"int9"}}, memory, {}, 1, 0, workspace),
                       doctest::Contains("'int9'"), Error);
  CHECK_THROWS_WITH_AS(
      BucketCodec({{.name = "sign", .is_stochastic = true}}, memory, {}, 1, 0, workspace),
      doctest::Contains("codec sign has no stochastic rounding"), Error);
  CHECK_THROWS_WITH_AS(BucketCodec({{.name = "topk", .density = 0.01, .is_stochastic = true}},
                                   memory, {}, 1, 0, workspace),
                       doctest::Contains("codec topk has no stochastic rounding"), Error);
  const BucketMemory with_residual{gradient.data(), DType::kFloat32, gradient.data(), 100};
  CHECK_THROWS_WITH_AS(
      BucketCodec({{.name = "int8", .is_stochastic = true}}, with_residual, {}, 1, 0, workspace),
      doctest::Contains("keeps no residual"), Error);
  for (const double density : {0.0, -0.1, 0.13, 2.0, std::nan("")}) {
    CHECK_THROWS_WITH_AS(BucketCodec({{"topk", density}}, memory, {}, 1, 0, workspace),
                         doctest::Contains("density"), Error);
  }
}

TEST_CASE("shapes are cut at multiples of the alignment") {
  for (const CodecSpec& spec : testing::tested_codecs()) {
    for (const int64_t n : {1, 511, 100'000, 50'000'000}) {
      CodecWorkspace workspace;
      const BucketCodec codec({spec}, {nullptr, DType::kFloat32, nullptr, n}, {}, 1, 0, workspace);
      const BucketShape shape = codec.shape();
      CHECK(shape.num_elements == n);
      CHECK(shape.smallest_slice % shape.alignment == 0);
      CHECK(shape.largest_slice % shape.alignment == 0);
      CHECK(shape.smallest_slice > 0);
      CHECK(shape.smallest_slice <= shape.largest_slice);
    }
  }
}

// Every range starts and ends anywhere: inside runs, at their ends, in empty ones.
TEST_CASE("mixed runs: uncompressed ones are exact, nothing is lost in the others") {
  constexpr int64_t kNumElements = 20'000;
  const std::vector<Run> runs{{0, 0},  {3000, 0}, {64, 1}, {1, 0},    {0, 1},
                              {10, 1}, {9925, 0}, {7, 1},  {6993, 0}, {0, 0}};
  std::vector<bool> is_compressed;
  for (const Run& run : runs) {
    is_compressed.insert(is_compressed.end(), static_cast<size_t>(run.num_elements),
                         run.codec == 0);
  }
  REQUIRE(is_compressed.size() == static_cast<size_t>(kNumElements));
  const MessageLabel label{.step = 1, .bucket = 2, .segment = 3, .slice = 4};

  for (const CodecSpec& spec : testing::tested_codecs()) {
    for (const ElementRange range :
         {ElementRange{0, kNumElements}, ElementRange{3000, 3064}, ElementRange{512, 3001},
          ElementRange{3065, 13'001}, ElementRange{13'000, 13'007}, ElementRange{19'999, 20'000}}) {
      CAPTURE(spec.name);
      CAPTURE(range.begin);
      CAPTURE(range.end);
      auto gradient = testing::random_values(Values::kNormal, kNumElements, 1);
      auto residual = testing::random_values(Values::kNormal, kNumElements, 2);
      const auto gradient_before = gradient;
      const auto residual_before = residual;
      CodecWorkspace workspace;
      BucketCodec codec({spec, {"fp32"}},
                        {gradient.data(), DType::kFloat32, residual.data(), kNumElements}, runs, 1,
                        0, workspace);
      const auto payload_bytes = static_cast<size_t>(codec.payload_bytes(range));
      std::vector<std::byte> memory(payload_bytes + 64, std::byte{0xa5});
      const auto payload = std::span(memory).first(payload_bytes);
      codec.encode(range, {}, {}, payload, label);
      REQUIRE(std::all_of(memory.begin() + static_cast<int64_t>(payload_bytes), memory.end(),
                          [](std::byte guard) { return guard == std::byte{0xa5}; }));
      REQUIRE(gradient == gradient_before);
      const std::span<const std::byte> received = payload;
      codec.decode(range, {&received, 1}, {&label, 1});

      for (int64_t element = 0; element < kNumElements; ++element) {
        const auto i = static_cast<size_t>(element);
        CAPTURE(i);
        if (element < range.begin || element >= range.end) {
          REQUIRE(gradient[i] == gradient_before[i]);
          REQUIRE(residual[i] == residual_before[i]);
          continue;
        }
        const float value = gradient_before[i] + residual_before[i];
        // The rotation mixes the values of a block, and rounds.
        const double tolerance = is_compressed[i] && testing::is_rotated(spec) ? 1e-6 * 8 : 0;
        REQUIRE(std::fabs(double{gradient[i]} + double{residual[i]} - double{value}) <= tolerance);
        if (!is_compressed[i]) REQUIRE(gradient[i] == value);
      }
    }
  }
}

TEST_CASE("the same inputs give the same payload, padding included") {
  constexpr int64_t kNumElements = 777;
  const std::vector<Run> runs{{400, 0}, {77, 1}, {300, 0}};
  const MessageLabel label{};
  for (const CodecSpec& spec : testing::tested_codecs()) {
    CAPTURE(spec.name);
    std::vector<std::byte> payloads[2];
    for (const int fill : {0, 1}) {
      auto gradient = testing::random_values(Values::kHalves, kNumElements, 1);
      std::vector<float> residual(kNumElements);
      CodecWorkspace workspace;
      BucketCodec codec({spec, {"fp32"}},
                        {gradient.data(), DType::kFloat32, residual.data(), kNumElements}, runs, 1,
                        0, workspace);
      const auto bytes = static_cast<size_t>(codec.payload_bytes({0, kNumElements}));
      payloads[fill].assign(bytes, fill == 0 ? std::byte{0} : std::byte{0xff});
      codec.encode({0, kNumElements}, {}, {}, payloads[fill], label);
    }
    CHECK(payloads[0] == payloads[1]);
  }
}

TEST_CASE("encode_sections and decode_sections: the same without the header") {
  for (const CodecSpec& spec : testing::tested_codecs()) {
    CAPTURE(spec.name);
    const auto values = testing::random_values(Values::kNormal, 777, 1);
    testing::Bucket usual({.codec = spec, .runs = {{400, 0}, {377, 1}}}, values, values);
    testing::Bucket bare({.codec = spec, .runs = {{400, 0}, {377, 1}}}, values, values);
    const auto payload = usual.encode();
    auto sections = payload;
    std::fill(sections.begin(), sections.end(), std::byte{0xa5});
    bare.codec().encode_sections(bare.whole(), {}, sections, {});
    const std::ptrdiff_t header = kHeaderBytes;
    CHECK(std::equal(sections.begin() + header, sections.end(), payload.begin() + header));
    CHECK(std::all_of(sections.begin(), sections.begin() + header,
                      [](std::byte byte) { return byte == std::byte{0xa5}; }));
    CHECK(testing::same_bits(bare.residual(), usual.residual()));
    const std::span<const std::byte> received = sections;
    bare.codec().decode_sections(bare.whole(), {&received, 1});
    usual.decode({payload});
    CHECK(bare.memory() == usual.memory());
  }
}

}  // namespace
}  // namespace fastcomm
