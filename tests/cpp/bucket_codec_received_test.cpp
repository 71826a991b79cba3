// A bucket that is encoded with payloads of other ranks: their sum is added, in order, and each is
// checked before anything is done.

#include <cmath>
#include <string>

#include "buckets.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bucket;
using testing::BucketOptions;
using testing::Values;

constexpr int64_t kNumElements = 5000;
constexpr MessageLabel kLabel{.step = 1, .bucket = 2, .segment = 3, .slice = 4};
const std::vector<Run> kRuns{{1300, 0}, {100, 1}, {3000, 0}, {600, 1}};

std::vector<float> values(uint64_t seed) {
  return testing::random_values(Values::kNormal, kNumElements, seed);
}

std::vector<testing::Bytes> payloads_of_others(const BucketOptions& options, uint64_t count) {
  std::vector<testing::Bytes> payloads;
  for (uint64_t i = 0; i < count; ++i) {
    Bucket bucket(options, values(100 + i), {});
    payloads.push_back(bucket.encode(bucket.whole(), {}, kLabel));
  }
  return payloads;
}

std::vector<float> decoded(const BucketOptions& options, const testing::Bytes& payload) {
  Bucket bucket(options, std::vector<float>(kNumElements), {});
  return bucket.decode(bucket.whole(), {payload}, kLabel);
}

TEST_CASE("what is delivered and left out is gradient + residual + the sum of the received") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (uint64_t num_received = 0; num_received <= 4; ++num_received) {
      CAPTURE(codec.name);
      CAPTURE(num_received);
      const BucketOptions options{.codec = codec, .runs = kRuns};
      const auto received = payloads_of_others(options, num_received);
      const auto gradient = values(1);
      const auto before = values(2);
      Bucket bucket(options, gradient, before);
      const auto payload = bucket.encode(bucket.whole(), received, kLabel);
      const auto delivered = decoded(options, payload);
      std::vector<double> sum(gradient.begin(), gradient.end());
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += double{before[i]};
      for (const auto& one : received) {
        const auto addend = decoded(options, one);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += double{addend[i]};
      }
      for (size_t i = 0; i < sum.size(); ++i) {
        CAPTURE(i);
        const double kept = double{delivered[i]} + double{bucket.residual()[i]};
        REQUIRE(std::fabs(kept - sum[i]) <= 1e-6 * 4 * static_cast<double>(num_received + 2));
      }
    }
  }
}

TEST_CASE("every received payload is checked, and a refused one leaves the residual alone") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (const size_t spoilt : {0, 1, 2}) {
      CAPTURE(codec.name);
      CAPTURE(spoilt);
      const BucketOptions options{.codec = codec, .runs = kRuns};
      auto received = payloads_of_others(options, 3);
      received[spoilt][received[spoilt].size() / 2] ^= std::byte{4};
      Bucket bucket(options, values(1), values(2));
      CHECK_THROWS_WITH_AS(bucket.encode(bucket.whole(), received, kLabel),
                           doctest::Contains("it was damaged on the way"), PayloadError);
      CHECK(testing::same_bits(bucket.residual(), values(2)));
      CHECK_THROWS_AS(bucket.decode(bucket.whole(), received, kLabel), PayloadError);
      CHECK(testing::to_floats(DType::kFloat32, bucket.memory()) == values(1));
    }
  }
}

TEST_CASE("each received payload is compared with its own label") {
  const BucketOptions options{.codec = {"int8"}};
  std::vector<float> gradient = values(1);
  CodecWorkspace workspace;
  BucketCodec codec({{"int8"}}, {gradient.data(), DType::kFloat32, nullptr, kNumElements}, {}, 1, 0,
                    workspace);
  const ElementRange all{0, kNumElements};
  std::vector<testing::Bytes> payloads(
      2, testing::Bytes(static_cast<size_t>(codec.payload_bytes(all))));
  const MessageLabel labels[] = {{.step = 1, .segment = 0}, {.step = 1, .segment = 1}};
  for (size_t i = 0; i < 2; ++i) codec.encode(all, {}, {}, payloads[i], labels[i]);
  const std::vector<std::span<const std::byte>> in_order{payloads[0], payloads[1]};
  const std::vector<std::span<const std::byte>> swapped{payloads[1], payloads[0]};
  testing::Bytes out(payloads[0].size());
  CHECK_NOTHROW(codec.encode(all, in_order, labels, out, labels[0]));
  CHECK_THROWS_WITH_AS(codec.encode(all, swapped, labels, out, labels[0]),
                       doctest::Contains("segment 1, this rank expects 0"), PayloadError);
}

TEST_CASE("payloads of a rotated codec with another seed are refused, and announced otherwise") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    if (!testing::is_rotated(codec)) continue;
    CAPTURE(codec.name);
    CodecSpec other = codec;
    other.seed = codec.seed + 1;
    Bucket bucket({.codec = codec}, values(1), {});
    Bucket of_other_seed({.codec = other}, values(1), {});
    CHECK(bucket.codec().describe() != of_other_seed.codec().describe());
    const auto payload = of_other_seed.encode();
    CHECK(payload != bucket.encode());
    CHECK_THROWS_WITH_AS(bucket.encode({payload}), doctest::Contains("codec parameter 100"),
                         PayloadError);
  }
}

}  // namespace
}  // namespace fastcomm
