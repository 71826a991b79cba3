// A bucket with a codec for each run: what each run is sent as does not depend on the others.

#include "mixed_codecs.h"

#include "buckets.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bucket;
using testing::BucketOptions;
using testing::Bytes;
using testing::kMixedElements;
using testing::Values;

BucketOptions mixed_bucket(const CodecSpec& codec) {
  return {.codec = codec, .runs = testing::mixed_runs(), .other_codecs = testing::mixed_codecs()};
}

// The elements of a codec's runs: each by itself, or all in one array.
struct Part {
  int codec;
  std::vector<int64_t> elements;
};

// In the order of the payload: sparse codecs in that of the list, then dense runs.
std::vector<Part> parts_of(const BucketOptions& options) {
  const std::vector<CodecSpec> codecs = options.codecs();
  std::vector<Part> parts;
  const auto append = [](Part& part, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) part.elements.push_back(first + i);
  };
  for (int codec = 0; codec < static_cast<int>(codecs.size()); ++codec) {
    if (codecs[static_cast<size_t>(codec)].name != "topk") continue;
    parts.push_back({codec, {}});
    int64_t first = 0;
    for (const Run& run : options.runs) {
      if (run.codec == codec) append(parts.back(), first, run.num_elements);
      first += run.num_elements;
    }
  }
  int64_t first = 0;
  for (const Run& run : options.runs) {
    if (codecs[static_cast<size_t>(run.codec)].name != "topk") {
      parts.push_back({run.codec, {}});
      append(parts.back(), first, run.num_elements);
    }
    first += run.num_elements;
  }
  return parts;
}

std::vector<float> pick(const std::vector<float>& values, const std::vector<int64_t>& elements) {
  std::vector<float> picked;
  for (const int64_t element : elements) picked.push_back(values[static_cast<size_t>(element)]);
  return picked;
}

void check_each_part_alone(const BucketOptions& options, Values kind) {
  CAPTURE(options.codec.name);
  CAPTURE(static_cast<int>(options.dtype));
  CAPTURE(static_cast<int>(kind));
  const auto gradient =
      testing::rounded_to(options.dtype, testing::random_values(kind, kMixedElements, 1));
  const auto residual = testing::random_values(Values::kNormal, kMixedElements, 2);
  Bucket mixed(options, gradient, residual);
  const Bytes payload = mixed.encode();
  const auto result = mixed.decode({payload});

  Bytes sections;
  for (const auto& [codec, elements] : parts_of(options)) {
    CAPTURE(codec);
    CAPTURE(elements.size());
    const CodecSpec spec = options.codecs()[static_cast<size_t>(codec)];
    Bucket alone({.codec = spec, .dtype = options.dtype}, pick(gradient, elements),
                 pick(residual, elements));
    const Bytes bytes = alone.encode();
    sections.insert(sections.end(), bytes.begin() + kHeaderBytes, bytes.end());
    REQUIRE(testing::same_bits(alone.residual(), pick(mixed.residual(), elements)));
    REQUIRE(testing::same_bits(alone.decode({bytes}), pick(result, elements)));
  }
  REQUIRE(Bytes(payload.begin() + kHeaderBytes, payload.end()) == sections);
}

TEST_CASE("each run has the bits that it has when its codec is alone") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (const DType dtype : testing::kAllDTypes) {
      BucketOptions options = mixed_bucket(codec);
      options.dtype = dtype;
      for (const Values kind : testing::kAllValues) check_each_part_alone(options, kind);
    }
  }
}

TEST_CASE("the same with received payloads, for any number of threads") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    CAPTURE(codec.name);
    BucketOptions options = mixed_bucket(codec);
    options.runs = {{70'000, 2}, {140'001, 0}, {3, 1}, {66'000, 3}, {90'000, 2}, {5, 5}};
    options.runs.push_back({80'000, 5});
    int64_t num_elements = 0;
    for (const Run& run : options.runs) num_elements += run.num_elements;
    const auto gradient = testing::random_values(Values::kNormal, num_elements, 1);
    const std::vector<Bytes> received{
        Bucket(options, testing::random_values(Values::kNormal, num_elements, 2), {}).encode()};
    Bucket expected(options, gradient, gradient);
    const Bytes payload = expected.encode(received);
    expected.decode({payload, received[0]});
    for (const int num_threads : {1, 2, 3}) {
      options.num_threads = num_threads;
      Bucket bucket(options, gradient, gradient);
      REQUIRE(bucket.encode(received) == payload);
      bucket.decode({payload, received[0]});
      REQUIRE(testing::same_bits(bucket.residual(), expected.residual()));
      REQUIRE(bucket.memory() == expected.memory());
    }
  }
}

TEST_CASE("stochastic rounding has each codec's own seed") {
  const auto gradient = testing::random_values(Values::kNormal, 2000, 1);
  const auto payload = [&](uint32_t seed, uint32_t other_seed) {
    BucketOptions options{.codec = {.name = "int8", .is_stochastic = true, .seed = seed}};
    options.runs = {{1000, 0}, {1000, 1}};
    options.other_codecs = {{.name = "int8", .is_stochastic = true, .seed = other_seed}};
    return Bucket(options, gradient, {}).encode();
  };
  const Bytes expected = payload(1, 2);
  const auto half = static_cast<int64_t>(kHeaderBytes) + dense_format("int8").section_bytes(1000);
  const auto compare = [&](const Bytes& other, int64_t begin, int64_t end) {
    return std::equal(expected.begin() + begin, expected.begin() + end, other.begin() + begin);
  };
  const auto size = static_cast<int64_t>(expected.size());
  CHECK(compare(payload(1, 3), kHeaderBytes, half));
  CHECK_FALSE(compare(payload(1, 3), half, size));
  CHECK_FALSE(compare(payload(3, 2), kHeaderBytes, half));
  CHECK(compare(payload(3, 2), half, size));
}

TEST_CASE("a malformed section of any sparse codec leaves all residuals as they were") {
  BucketOptions options;
  options.codec = {.name = "topk", .density = 0.02};
  options.runs = {{900, 0}, {900, 1}};
  options.other_codecs = {{.name = "topk", .density = 0.1}};
  const auto gradient = testing::random_values(Values::kNormal, 1800, 1);
  Bytes received = Bucket(options, gradient, {}).encode();
  // The second section's count.
  const int64_t second = kHeaderBytes + topk_section_bytes(18, 900);
  received[static_cast<size_t>(second) + 3] = std::byte{0xff};
  seal_payload(received, {}, {kTopKWireId, 18, 1800});
  Bucket bucket(options, gradient, gradient);
  CHECK_THROWS_AS(bucket.encode({received}), PayloadError);
  CHECK(testing::same_bits(bucket.residual(), gradient));
}

TEST_CASE("lists without codecs, without runs, and runs of others are errors") {
  std::vector<float> gradient(100);
  CodecWorkspace workspace;
  const BucketMemory memory{gradient.data(), DType::kFloat32, nullptr, 100};
  const std::vector<CodecSpec> two{{"int8"}, {"int4"}};
  CHECK_THROWS_WITH_AS(BucketCodec({}, memory, {}, 1, 0, workspace),
                       doctest::Contains("has no codec"), Error);
  CHECK_THROWS_WITH_AS(BucketCodec(two, memory, {}, 1, 0, workspace),
                       doctest::Contains("a bucket of 2 codecs has no runs"), Error);
  for (const int codec : {-1, 2}) {
    CHECK_THROWS_WITH_AS(BucketCodec(two, memory, {{60, 0}, {40, codec}}, 1, 0, workspace),
                         doctest::Contains("of a list of 2"), Error);
  }
}

struct Layout {
  Layout(const std::vector<CodecSpec>& codecs, const std::vector<Run>& runs)
      : layout(codecs, {nullptr, DType::kFloat32, nullptr, 3000}, runs) {}
  BucketLayout layout;
};

TEST_CASE("the main codec is the one with most elements of those that compress") {
  const auto header = [](const std::vector<CodecSpec>& codecs, const std::vector<Run>& runs) {
    const PayloadFormat format = Layout(codecs, runs).layout.format({0, 3000});
    return std::pair(static_cast<int>(format.codec_id), static_cast<int>(format.parameter));
  };
  const CodecSpec int8{"int8"}, fp32{"fp32"}, sign{.name = "sign", .seed = 5}, topk{"topk", 0.01};
  CHECK(header({int8, fp32}, {{10, 0}, {2990, 1}}) == std::pair(8, 512));
  CHECK(header({int8, fp32}, {{3000, 1}}) == std::pair(8, 512));
  CHECK(header({fp32, fp32}, {{10, 0}, {2990, 1}}) == std::pair(32, 512));
  CHECK(header({int8, sign, topk}, {{999, 0}, {1001, 1}, {1000, 2}}) == std::pair(10, 5));
  CHECK(header({int8, topk}, {{1500, 0}, {1500, 1}}) == std::pair(8, 512));
  CHECK(header({topk, int8}, {{1500, 0}, {1500, 1}}) == std::pair(1, 15));
  CHECK(header({int8, topk}, {{1000, 1}, {999, 0}, {1001, 1}}) == std::pair(1, 20));
}

TEST_CASE("a bucket is cut for its largest blocks and its main codec, or for the sparse one") {
  const auto shape = [](const std::vector<CodecSpec>& codecs, const std::vector<Run>& runs) {
    const BucketShape s = Layout(codecs, runs).layout.shape();
    return std::vector<int64_t>{s.alignment, s.smallest_slice, s.largest_slice};
  };
  const CodecSpec int8{"int8"}, int4{"int4"}, fp32{"fp32"}, topk{"topk", 0.01};
  const std::vector<Run> halves{{1000, 0}, {2000, 1}};
  CHECK(shape({int4, fp32}, halves) == shape({int4}, {}));
  CHECK(shape({int4, int8}, halves) == shape({int8}, {}));
  CHECK(shape({int8, int4}, halves) == std::vector<int64_t>{512, 1 << 18, 1 << 23});
  CHECK(shape({topk, int4}, halves) == shape({topk}, {}));
  CHECK(shape({int4, topk, fp32}, halves) == shape({topk}, {}));
}

TEST_CASE("descriptions name the main codec, count the others and tell any two layouts apart") {
  const auto describe = [](const std::vector<CodecSpec>& codecs, const std::vector<Run>& runs) {
    return Layout(codecs, runs).layout.describe();
  };
  const std::vector<Run> runs{{1000, 0}, {1500, 1}, {500, 2}};
  const std::vector<CodecSpec> codecs{{"topk", 0.01}, {.name = "int2", .seed = 9}, {"fp32"}};
  const std::string expected = describe(codecs, runs);
  CHECK(expected.starts_with("int2 seed=9 +1 codecs, 3000 elements, layout "));
  CHECK(describe(codecs, runs) == expected);
  CHECK(describe({{"int8"}, {"fp32"}}, {{1000, 0}, {2000, 1}})
            .starts_with("int8, 3000 elements, layout "));

  std::vector<std::string> others;
  const auto with = [&](int index, const CodecSpec& spec) {
    auto changed = codecs;
    changed[static_cast<size_t>(index)] = spec;
    others.push_back(describe(changed, runs));
  };
  with(0, {"topk", 0.011});
  with(0, {"int8"});
  with(1, {.name = "int2", .seed = 10});
  with(2, {"bf16"});
  with(2, {.name = "int8"});
  with(2, {.name = "int8", .is_stochastic = true});
  with(2, {.name = "int8", .is_stochastic = true, .seed = 1});
  others.push_back(describe({codecs[1], codecs[0], codecs[2]}, {{1000, 1}, {1500, 0}, {500, 2}}));
  others.push_back(describe(codecs, {{1000, 0}, {500, 2}, {1500, 1}}));
  others.push_back(describe(codecs, {{1000, 0}, {1499, 1}, {501, 2}}));
  others.push_back(expected);
  for (size_t i = 0; i < others.size(); ++i) {
    for (size_t j = 0; j < i; ++j) CHECK(others[i] != others[j]);
  }
}

}  // namespace
}  // namespace fastcomm
