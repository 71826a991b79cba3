// Encoding, the wire and decoding of different slices overlap: seen in the order of events.

#include <algorithm>
#include <string>

#include "all_reduce.h"
#include "doctest.h"
#include "forwarding_transport.h"

namespace fastcomm {
namespace {

using testing::Values;

// Notes what one rank does, in order.
class ObservedTransport final : public testing::ForwardingTransport {
 public:
  ObservedTransport(Transport& transport, std::vector<std::string>& events)
      : ForwardingTransport(transport), events_(events) {}
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override {
    events_.push_back("send " + std::to_string(tag));
    return ForwardingTransport::send(peer, tag, bytes);
  }
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes) override {
    events_.push_back("receive " + std::to_string(tag));
    return ForwardingTransport::receive(peer, tag, bytes);
  }

 private:
  std::vector<std::string>& events_;
};

std::vector<std::string> events_of_rank_0(std::string_view schedule_name) {
  constexpr int64_t kNumElements = 2 * 3 * 512;  // two ranks, three slices a segment
  std::vector<std::string> events;
  InProcessNetwork network(2);
  run_ranks(network, [&](int rank) {
    auto gradient = testing::random_values(Values::kNormal, kNumElements, 1);
    std::vector<float> residual(gradient.size());
    std::vector<std::string> unused;
    auto& own_events = rank == 0 ? events : unused;
    CodecWorkspace workspace;
    BucketCodec bucket({{"int8"}},
                       {gradient.data(), DType::kFloat32, residual.data(), kNumElements}, {}, 1,
                       rank, workspace);
    testing::SlicedCodec codec(bucket, 512, [&](std::string_view event, ElementRange range, auto) {
      own_events.push_back(std::string(event) + " at " + std::to_string(range.begin));
    });
    const auto inner = network.transport(rank);
    ObservedTransport transport(*inner, own_events);
    PayloadBuffers buffers;
    Measurements measurements;
    Exchange exchange(codec, transport, buffers, measurements, {});
    schedule(schedule_name).run(exchange);
  });
  return events;
}

// Checks that the events occur in this order, with others between them.
void check_in_order(const std::vector<std::string>& events,
                    const std::vector<std::string>& expected) {
  auto next = events.begin();
  for (const std::string& event : expected) {
    CAPTURE(event);
    next = std::find(next, events.end(), event);
    REQUIRE(next != events.end());
    ++next;
  }
}

TEST_CASE("ring: a slice is on the wire while the next one is encoded") {
  const auto events = events_of_rank_0("ring");
  // Hop 0 of rank 0 sends segment 0; messages 0, 1, 2 are its slices.
  check_in_order(events,
                 {"encode at 0", "send 0", "encode at 512", "send 1", "encode at 1024", "send 2"});
  // Receives are posted before anything is encoded, and a hop ahead from then on.
  check_in_order(events, {"receive 0", "receive 1", "receive 2", "encode at 0"});
  check_in_order(events, {"receive 3", "send 4"});
  // The owner's slice is on the wire before it is decoded, and before the next one is encoded.
  check_in_order(events, {"encode at 1536", "send 3", "decode at 1536", "encode at 2048"});
}

TEST_CASE("gather: a slice is on the wire while the next one is encoded") {
  const auto events = events_of_rank_0("gather");
  check_in_order(events, {"receive 0", "receive 1", "receive 2", "receive 3", "receive 4",
                          "receive 5", "encode at 0", "send 0", "encode at 512", "send 1"});
}

TEST_CASE("scatter_gather: a slice is on the wire while the next one is encoded") {
  const auto events = events_of_rank_0("scatter_gather");
  // The other's segment goes out slice by slice; scatter messages are 0, 1, 2.
  check_in_order(events, {"receive 0", "receive 1", "receive 2", "encode at 1536"});
  check_in_order(events, {"encode at 1536", "send 0", "encode at 2048", "send 1", "encode at 2560",
                          "send 2", "encode at 0"});
  // The sums are on the wire, messages 3, 4, 5, one before the next is encoded, and before anything
  // is decoded.
  check_in_order(events, {"encode at 0", "send 3", "encode at 512", "send 4", "encode at 1024",
                          "send 5", "decode at 0"});
  check_in_order(events, {"receive 3", "encode at 512", "receive 4", "encode at 1024"});
}

}  // namespace
}  // namespace fastcomm
