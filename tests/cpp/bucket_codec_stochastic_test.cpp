// Stochastic rounding of a bucket: what an element is rounded to depends on the element and the
// message, not on how the bucket is cut or shared.

#include "buckets.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bucket;
using testing::BucketOptions;
using testing::Values;

constexpr int64_t kNumElements = 10'000;
constexpr MessageLabel kLabel{.step = 7, .bucket = 1, .segment = 0, .slice = 0};

std::vector<float> gradient() { return testing::random_values(Values::kNormal, kNumElements, 1); }

// What the bucket decodes to, encoded in slices of `slice_elements`.
std::vector<float> rounded(const BucketOptions& options, int64_t slice_elements,
                           MessageLabel label = kLabel) {
  Bucket bucket(options, gradient(), {});
  std::vector<float> result;
  for (int64_t begin = 0; begin < kNumElements; begin += slice_elements, ++label.slice) {
    const ElementRange range{begin, std::min(kNumElements, begin + slice_elements)};
    result = bucket.decode(range, {bucket.encode(range, {}, label)}, label);
  }
  return result;
}

size_t num_different(const std::vector<float>& a, const std::vector<float>& b) {
  size_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) count += a[i] != b[i];
  return count;
}

TEST_CASE("there are codecs with stochastic rounding") {
  CHECK(testing::stochastic_codecs().size() >= 2);
}

TEST_CASE("the cut of a bucket in slices does not matter") {
  const std::vector<Run> runs{{3000, 0}, {7, 1}, {6993, 0}};
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    for (const auto& some_runs : {std::vector<Run>{}, runs}) {
      const BucketOptions options{.codec = codec, .runs = some_runs};
      CAPTURE(codec.name);
      CAPTURE(some_runs.size());
      const auto expected = rounded(options, kNumElements);
      CHECK(num_different(expected, gradient()) > 9000);
      if (!some_runs.empty()) continue;  // a slice that starts within a run has other blocks
      const int64_t block = dense_format(codec.name).block_elements;
      for (const int64_t blocks : {1, 2, 5}) {
        CHECK(testing::same_bits(rounded(options, blocks * block), expected));
      }
    }
  }
}

TEST_CASE("the same step on the same rank gives the same, another rank, step or bucket another") {
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    CAPTURE(codec.name);
    const auto expected = rounded({.codec = codec, .rank = 2}, kNumElements);
    CHECK(testing::same_bits(rounded({.codec = codec, .rank = 2}, kNumElements), expected));
    CodecSpec other_seed = codec;
    other_seed.seed += 1;
    MessageLabel other_step = kLabel;
    other_step.step += 1;
    MessageLabel other_bucket = kLabel;
    other_bucket.bucket += 1;
    for (const auto& other : {rounded({.codec = codec, .rank = 3}, kNumElements),
                              rounded({.codec = other_seed, .rank = 2}, kNumElements),
                              rounded({.codec = codec, .rank = 2}, kNumElements, other_step),
                              rounded({.codec = codec, .rank = 2}, kNumElements, other_bucket)}) {
      CHECK(num_different(other, expected) > 2500);  // a third
    }
  }
}

TEST_CASE("runs that are not compressed are exact") {
  const std::vector<Run> runs{{3000, 0}, {2000, 1}, {5000, 0}};
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    const auto result = rounded({.codec = codec, .runs = runs}, kNumElements);
    const auto values = gradient();
    for (size_t i = 3000; i < 5000; ++i) REQUIRE(result[i] == values[i]);
  }
}

TEST_CASE("payloads of both ways of rounding understand each other") {
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    CodecSpec nearest = codec;
    nearest.is_stochastic = false;
    Bucket random({.codec = codec}, gradient(), {});
    Bucket plain({.codec = nearest}, gradient(), {});
    // Another policy all the same: ranks that differ in it are told so.
    CHECK(random.codec().describe() != plain.codec().describe());
    CHECK_NOTHROW(plain.encode({random.encode()}));
    CHECK_NOTHROW(random.decode({plain.encode()}));
  }
}

}  // namespace
}  // namespace fastcomm
