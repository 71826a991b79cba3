// Threads that share the work of a bucket change nothing but the time that it takes.

#include <atomic>
#include <thread>

#include "buckets.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bucket;
using testing::BucketOptions;
using testing::Values;

constexpr int64_t kNumElements = 200'000;  // several tasks of 65536 elements
const std::vector<Run> kRuns{{140'001, 0}, {3, 1}, {0, 0}, {20'000, 1}, {39'995, 0}, {1, 0}};

struct Outcome {
  testing::Bytes payload;
  std::vector<float> residual;
  testing::Bytes result;
};

bool operator==(const Outcome& a, const Outcome& b) {
  return a.payload == b.payload && testing::same_bits(a.residual, b.residual) &&
         a.result == b.result;
}

struct Inputs {
  std::vector<float> gradient;
  std::vector<float> residual;
  std::vector<testing::Bytes> received;
};

Outcome run(const BucketOptions& options, const Inputs& inputs) {
  Bucket bucket(options, inputs.gradient, inputs.residual);
  Outcome outcome;
  outcome.payload = bucket.encode(inputs.received);
  outcome.residual = bucket.residual();
  auto payloads = inputs.received;
  payloads.push_back(outcome.payload);
  bucket.decode(payloads);
  outcome.result = bucket.memory();
  return outcome;
}

void check_all_numbers_of_threads(BucketOptions options, const Inputs& inputs) {
  CAPTURE(options.codec.name);
  CAPTURE(options.codec.is_stochastic);
  CAPTURE(static_cast<int>(options.dtype));
  CAPTURE(options.runs.size());
  CAPTURE(inputs.received.size());
  options.num_threads = 0;
  const Outcome expected = run(options, inputs);
  for (const int num_threads : {1, 2, 3}) {
    CAPTURE(num_threads);
    options.num_threads = num_threads;
    REQUIRE(run(options, inputs) == expected);
  }
}

std::vector<testing::Bytes> payloads_of_others(const BucketOptions& options, Values kind,
                                               int count) {
  std::vector<testing::Bytes> payloads;
  for (int i = 0; i < count; ++i) {
    const auto gradient =
        testing::random_values(kind, kNumElements, 100 + static_cast<uint64_t>(i));
    payloads.push_back(Bucket(options, gradient, {}).encode());
  }
  return payloads;
}

TEST_CASE("payload, residual and result are those of one thread, for all kinds of values") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (const Values kind : testing::kAllValues) {
      CAPTURE(static_cast<int>(kind));
      const BucketOptions options{.codec = codec, .runs = kRuns};
      const Inputs inputs{testing::random_values(kind, kNumElements, 1),
                          testing::random_values(Values::kNormal, kNumElements, 2),
                          payloads_of_others(options, kind, 1)};
      check_all_numbers_of_threads(options, inputs);
    }
  }
}

TEST_CASE("the same for every dtype and number of received payloads, without runs") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (const DType dtype : testing::kAllDTypes) {
      for (const int num_received : {0, 1, 2}) {
        const BucketOptions options{.codec = codec, .dtype = dtype};
        const auto received = payloads_of_others(options, Values::kNormal, num_received);
        const auto gradient = testing::random_values(Values::kNormal, kNumElements, 1);
        const auto residual = testing::random_values(Values::kTiny, kNumElements, 2);
        check_all_numbers_of_threads(options, {gradient, residual, received});
        check_all_numbers_of_threads(options, {gradient, {}, received});
      }
    }
  }
}

TEST_CASE("the same with stochastic rounding") {
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    for (const auto& runs : {std::vector<Run>{}, kRuns}) {
      for (const int num_received : {0, 2}) {
        const BucketOptions options{.codec = codec, .runs = runs, .rank = 3};
        check_all_numbers_of_threads(options,
                                     {testing::random_values(Values::kNormal, kNumElements, 1),
                                      {},
                                      payloads_of_others(options, Values::kNormal, num_received)});
      }
    }
  }
}

TEST_CASE("several lanes share one pool") {
  // Each has its own workspace; the pool is what they share.
  const auto pool = std::make_shared<ThreadPool>(3);
  const auto gradient = testing::random_values(Values::kNormal, kNumElements, 1);
  for (const CodecSpec& codec : testing::tested_codecs()) {
    CAPTURE(codec.name);
    const Outcome expected = run({.codec = codec}, {gradient, gradient, {}});
    std::atomic<int> num_wrong = 0;
    {
      std::vector<std::jthread> lanes;
      for (int lane = 0; lane < 3; ++lane) {
        lanes.emplace_back([&] {
          CodecWorkspace workspace;
          workspace.threads = pool;
          for (int step = 0; step < 3; ++step) {
            auto memory = gradient;
            auto residual = gradient;
            BucketCodec bucket({codec},
                               {memory.data(), DType::kFloat32, residual.data(), kNumElements}, {},
                               1, 0, workspace);
            const ElementRange all{0, kNumElements};
            std::vector<std::byte> payload(static_cast<size_t>(bucket.payload_bytes(all)));
            bucket.encode(all, {}, {}, payload, {});
            num_wrong +=
                payload != expected.payload || !testing::same_bits(residual, expected.residual);
          }
        });
      }
    }
    CHECK(num_wrong == 0);
  }
}

}  // namespace
}  // namespace fastcomm
