// The schedules over the paired transport, on simulated GPUs. A deadlock is CTest's timeout.

#include "collectives/paired_transport.h"

#include <array>

#include "all_reduce.h"
#include "doctest.h"
#include "simulated_device.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

// A group of ranks as in all_reduce.h, over simulated devices.
class DeviceGroup : public Group {
 public:
  using Group::Group;

  // Two exchanges, one enqueued behind the other, as buckets are: the second has memory of its own.
  void all_reduce(const std::vector<std::vector<float>>& gradients) {
    InProcessNetwork network(options().world_size);
    run_ranks(network,
              [&](int rank) { run_rank(network, rank, gradients[static_cast<size_t>(rank)]); });
    ++step_;
  }

 private:
  struct Bucket {
    std::vector<std::byte> memory;
    std::vector<float> residual;
    PayloadBuffers buffers;
    std::unique_ptr<BucketCodec> codec;
    std::unique_ptr<testing::SlicedCodec> sliced;
    std::unique_ptr<testing::EnqueuedCodec> enqueued;
  };

  void run_rank(InProcessNetwork& network, int index, const std::vector<float>& gradient) {
    testing::Rank& rank = this->rank(index);
    std::array<Bucket, 2> buckets;
    testing::Device device(network, index);
    testing::DeviceGroups groups(device);
    for (uint16_t i = 0; i < buckets.size(); ++i) {
      Bucket& bucket = buckets[i];
      bucket.memory = testing::to_dtype(options().dtype, gradient);
      bucket.residual = rank.residual;
      bucket.codec = std::make_unique<BucketCodec>(
          options().codecs(),
          BucketMemory{bucket.memory.data(), options().dtype, bucket.residual.data(),
                       options().num_elements},
          options().runs, options().factor, index, rank.workspace);
      bucket.sliced =
          std::make_unique<testing::SlicedCodec>(*bucket.codec, options().slice_elements);
      bucket.enqueued = std::make_unique<testing::EnqueuedCodec>(*bucket.sliced, device);
      PairedTransport transport(groups);
      Exchange exchange(*bucket.enqueued, transport, bucket.buffers, rank.measurements, {step_, i});
      schedule(options().schedule).run(exchange);
    }
    device.synchronize();
    REQUIRE(buckets[0].memory == buckets[1].memory);
    REQUIRE(testing::same_bits(buckets[0].residual, buckets[1].residual));
    rank.result = testing::to_floats(options().dtype, buckets[1].memory);
    rank.residual = buckets[1].residual;
  }

  uint32_t step_ = 0;
};

// The same results, residuals and bytes as over a transport of messages.
void check_same(const GroupOptions& options) {
  Group expected(options);
  DeviceGroup group(options);
  for (uint64_t step = 0; step < 2; ++step) {
    const auto gradients = testing::random_gradients(options, Values::kNormal, step);
    expected.all_reduce(gradients);
    group.all_reduce(gradients);
    testing::check_groups_identical(group, expected);
  }
  for (int rank = 0; rank < options.world_size; ++rank) {
    REQUIRE(group.rank(rank).measurements.wire_bytes ==
            2 * expected.rank(rank).measurements.wire_bytes);
  }
}

const std::vector<CodecSpec> kCodecs{{"int8"}, {"fp32"}, {"topk", 0.02}};

TEST_CASE("schedules over groups give the bits that they give over messages: ragged and empty") {
  for (const int64_t num_elements : {0, 1, 5, 513, 512 * 3, 4096 + 7}) {
    testing::for_each_group({.num_elements = num_elements}, kCodecs, check_same);
  }
}

TEST_CASE("the same with several slices a segment, which not all segments have") {
  for (const int64_t num_elements : {20'011, 512 * 9 + 1, 512 * 17}) {
    testing::for_each_group({.num_elements = num_elements, .slice_elements = 512}, kCodecs,
                            check_same);
  }
}

TEST_CASE("the same with mixed runs and a narrower dtype") {
  GroupOptions options{.num_elements = 4096 + 7, .dtype = DType::kBFloat16};
  options.runs = {{10, 1}, {1500, 0}, {1, 1}, {600, 0}, {1992, 1}};
  testing::for_each_group(options, kCodecs, check_same);
}

// Notes what is launched: "send to 1 (4), receive from 2 (8)".
class NotedGroups final : public GroupLauncher {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 3; }
  std::unique_ptr<PendingMessage> launch(const std::optional<Send>& send,
                                         const std::optional<Receive>& receive) override {
    std::string text;
    if (send) {
      text +=
          "send to " + std::to_string(send->peer) + " (" + std::to_string(send->bytes.size()) + ")";
    }
    if (receive) {
      text += std::string(send ? ", " : "") + "receive from " + std::to_string(receive->peer) +
              " (" + std::to_string(receive->bytes.size()) + ")";
    }
    launched.push_back(text);
    return std::make_unique<NotedWait>(*this, launched.size());
  }

  std::vector<std::string> launched;
  std::vector<size_t> waited;

 private:
  struct NotedWait final : PendingMessage {
    NotedWait(NotedGroups& groups, size_t number) : groups(groups), number(number) {}
    void wait() override { groups.waited.push_back(number); }
    NotedGroups& groups;
    size_t number;
  };
};

TEST_CASE("a send takes the receive from the other side with it, whichever of them there are") {
  std::array<std::byte, 8> memory;
  const std::span<std::byte> bytes(memory);
  NotedGroups groups;
  PairedTransport transport(groups);
  const auto from_2 = transport.receive(2, 7, bytes);
  const auto from_1 = transport.receive(1, 7, bytes.first(4));
  CHECK(groups.launched.empty());
  const auto to_1 = transport.send(1, 7, bytes.first(2));
  transport.skip_send(2, 7);
  const auto alone = transport.send(1, 8, bytes.first(1));
  transport.skip_send(2, 8);
  CHECK(groups.launched == std::vector<std::string>{"send to 1 (2), receive from 2 (8)",
                                                    "receive from 1 (4)", "send to 1 (1)"});
  to_1->wait();
  from_2->wait();  // the same group
  from_1->wait();
  alone->wait();
  from_1->wait();
  CHECK(groups.waited == std::vector<size_t>{1, 2, 3});
}

TEST_CASE("a schedule that would wait for ever gets an error instead") {
  std::array<std::byte, 8> memory;
  NotedGroups groups;
  PairedTransport transport(groups);
  const auto early = transport.receive(2, 7, memory);
  CHECK_THROWS_WITH_AS(early->wait(), doctest::Contains("paired"), Error);
  CHECK_THROWS_WITH_AS(transport.receive(2, 7, memory), doctest::Contains("rank 2 with tag 7"),
                       Error);
  const auto sent = transport.send(1, 9, memory);
  const auto late = transport.receive(2, 9, memory);
  CHECK_THROWS_AS(late->wait(), Error);
}

}  // namespace
}  // namespace fastcomm
