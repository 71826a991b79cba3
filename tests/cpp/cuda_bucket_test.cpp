// Buckets in device memory give the same payloads, residuals and results as those in host memory.

#include <vector>

#include "device_buckets.h"
#include "doctest.h"
#include "mixed_codecs.h"

namespace fastcomm {
namespace {

using testing::BucketOptions;
using testing::Bytes;
using testing::DeviceTwin;
using testing::DeviceWorkspace;
using testing::kAllDTypes;
using testing::kAllValues;
using testing::kDeviceLabel;
using testing::Values;

struct Case {
  BucketOptions options;
  int64_t num_elements;
  Values values = Values::kNormal;
  bool has_residual = true;
  int num_received = 0;
  int64_t misalignment = 0;
};

std::vector<float> values_of(const Case& test, uint64_t seed) {
  return testing::rounded_to(test.options.dtype,
                             testing::random_values(test.values, test.num_elements, seed));
}

template <class DeviceCodec>
void check(const Case& test) {
  CAPTURE(test.options.codec.name);
  CAPTURE(static_cast<int>(test.options.dtype));
  CAPTURE(test.num_elements);
  CAPTURE(static_cast<int>(test.values));
  CAPTURE(test.has_residual);
  CAPTURE(test.num_received);
  CAPTURE(test.misalignment);
  CAPTURE(test.options.runs.size());
  std::vector<Bytes> received;
  const ElementRange whole{0, test.num_elements};
  for (int i = 0; i < test.num_received; ++i) {
    testing::Bucket sender(test.options, values_of(test, 10 + static_cast<uint64_t>(i)), {});
    received.push_back(sender.encode(whole, {}, kDeviceLabel));
  }
  DeviceWorkspace workspace;
  const auto residual = test.has_residual
                            ? testing::random_values(Values::kNormal, test.num_elements, 2)
                            : std::vector<float>{};
  DeviceTwin<DeviceCodec> twin(test.options, values_of(test, 1), residual, test.misalignment,
                               workspace.get());
  std::vector<Bytes> payloads = received;
  payloads.insert(payloads.begin(), twin.encode(whole, received, kDeviceLabel));
  twin.encode(whole, received, kDeviceLabel);  // once more, with what the first left out
  twin.decode(whole, {payloads[0]}, kDeviceLabel);
  twin.decode(whole, payloads, kDeviceLabel);
  REQUIRE(workspace.failure().is_set == 0);
}

void check_both(const Case& test) {
  check<StreamCodec>(test);
  check<StagedCodec>(test);
}

TEST_CASE("every codec, dtype and kind of value: with tails, odd addresses and received payloads") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (const DType dtype : kAllDTypes) {
      for (const Values values : kAllValues) {
        check_both({{codec, dtype}, 5000, values, true, 1, 0});
        check<StreamCodec>({{codec, dtype}, 3001, values, false, 2, 1});
      }
    }
  }
}

TEST_CASE("every size around a block") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (const int64_t n : {1, 2, 31, 32, 33, 127, 255, 256, 257, 384, 511, 512, 513, 1023, 1280}) {
      check<StreamCodec>({{codec}, n, Values::kNormal, true, n % 3 == 0 ? 1 : 0, n % 4});
    }
  }
}

TEST_CASE("stochastic rounding takes the same random numbers") {
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    for (const int64_t misalignment : {0, 1}) {
      for (const int64_t n : {700, 4096}) {
        check_both({{.codec = codec, .rank = 5}, n, Values::kNormal, false, 1, misalignment});
      }
    }
  }
}

TEST_CASE("runs, compressed and not, at any place of the bucket") {
  const std::vector<Run> few{{1000, 0}, {10, 1}, {513, 0}};
  std::vector<Run> many;  // more than travel with a launch
  int64_t num_elements = 0;
  for (int i = 0; i < 40; ++i) {
    many.push_back({64 + 37 * i, i % 2});
    num_elements += many.back().num_elements;
  }
  for (const CodecSpec& codec : testing::tested_codecs()) {
    check_both({{.codec = codec, .runs = few}, 1523, Values::kNormal, true, 1, 0});
    check_both({{.codec = codec, .runs = many}, num_elements, Values::kNormal, true, 1, 0});
    check<StreamCodec>({{.codec = codec, .runs = {{600, 1}}}, 600});
  }
}

TEST_CASE("a codec for each run") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (const DType dtype : kAllDTypes) {
      const BucketOptions options{.codec = codec,
                                  .dtype = dtype,
                                  .runs = testing::mixed_runs(),
                                  .other_codecs = testing::mixed_codecs()};
      check_both({options, testing::kMixedElements, Values::kNormal, true, 1, 0});
      check_both({options, testing::kMixedElements, Values::kNonFinite, true, 2, 1});
      check_both({options, testing::kMixedElements, Values::kNormal, false, 1, 0});
    }
  }
}

TEST_CASE("stochastic rounding of two codecs, each with its own seed") {
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    BucketOptions options{.codec = codec, .runs = {{900, 1}, {1300, 0}, {800, 1}}, .rank = 5};
    options.other_codecs = {codec};
    options.other_codecs[0].seed = 1234;
    check_both({options, 3000, Values::kNormal, false, 1, 0});
  }
}

TEST_CASE("ranges of a bucket, and more payloads than travel with a launch") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    CAPTURE(codec.name);
    DeviceWorkspace workspace;
    const auto gradient = testing::random_values(Values::kNormal, 20000, 1);
    DeviceTwin<StreamCodec> twin({codec}, gradient, std::vector<float>(gradient.size()), 0,
                                 workspace.get());
    const int64_t alignment = twin.codec().shape().alignment;
    const ElementRange range{3 * alignment, 20 * alignment};
    std::vector<Bytes> payloads(11, twin.encode(range, {}, kDeviceLabel));
    twin.encode(range, payloads, kDeviceLabel);
    twin.decode(range, payloads, kDeviceLabel);
  }
}

TEST_CASE("parts: a payload of several megabytes is staged piece by piece") {
  check<StagedCodec>({{{"int8"}}, 2'200'001, Values::kNormal, true, 1, 0});
  check<StagedCodec>({{{"fp32"}}, 600'001, Values::kNormal, true, 1, 0});
}

TEST_CASE("a bucket without elements") {
  for (const CodecSpec& codec : testing::tested_codecs()) check_both({{codec}, 0});
}

}  // namespace
}  // namespace fastcomm
