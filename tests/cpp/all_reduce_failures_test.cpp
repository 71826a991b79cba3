// Ranks that are out of step and messages that are damaged: an error on the rank that receives
// them, and no rank waits for ever.

#include <list>
#include <string>

#include "all_reduce.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

// What a rank's error says; its type first.
std::string describe(const std::exception_ptr& error) {
  if (error == nullptr) return "none";
  try {
    std::rethrow_exception(error);
  } catch (const PayloadError& caught) {
    return std::string("PayloadError: ") + caught.what();
  } catch (const std::exception& caught) {
    return std::string("Error: ") + caught.what();
  }
}

bool is_payload_error(const std::string& error, const std::string& why) {
  return error.starts_with("PayloadError") && error.find(why) != std::string::npos;
}

// Each rank runs with the group (that is: codec) and the id that `of_rank` chooses.
template <class OfRank>
std::vector<std::string> errors_of(int world_size, OfRank&& of_rank) {
  InProcessNetwork network(world_size);
  const auto errors = testing::errors_of_ranks(network, [&](int rank) {
    const auto transport = network.transport(rank);
    auto [group, id] = of_rank(rank);
    const auto gradients = testing::random_gradients(group->options(), Values::kNormal, 1);
    group->run_rank(rank, gradients[static_cast<size_t>(rank)], *transport, id);
  });
  std::vector<std::string> described;
  for (const auto& error : errors) described.push_back(describe(error));
  return described;
}

TEST_CASE("a rank that is a step or a bucket ahead") {
  for (const Schedule& schedule : schedules()) {
    for (const int world_size : {2, 3}) {
      for (const CodecSpec& codec : testing::tested_codecs()) {
        for (const bool is_step : {true, false}) {
          CAPTURE(schedule.name);
          CAPTURE(codec.name);
          Group group({.codec = codec,
                       .schedule = schedule.name,
                       .world_size = world_size,
                       .num_elements = 2000});
          const auto errors = errors_of(world_size, [&](int rank) {
            const ExchangeId other = is_step ? ExchangeId{8, 0} : ExchangeId{7, 1};
            return std::pair(&group, rank == 1 ? other : ExchangeId{7, 0});
          });
          bool is_noticed = false;
          for (const std::string& error : errors) {
            CHECK(error != "none");
            is_noticed = is_noticed || is_payload_error(error, "the ranks are out of step");
          }
          CHECK(is_noticed);
        }
      }
    }
  }
}

TEST_CASE("another codec on one rank") {
  for (const Schedule& schedule : schedules()) {
    const int64_t num_elements = 5;  // few enough for payloads of the same size
    Group int8({.codec = {"int8"}, .schedule = schedule.name, .num_elements = num_elements});
    Group int4({.codec = {"int4"}, .schedule = schedule.name, .num_elements = num_elements});
    const auto errors =
        errors_of(2, [&](int rank) { return std::pair(rank == 0 ? &int8 : &int4, ExchangeId{}); });
    bool is_noticed = false;
    for (const std::string& error : errors) {
      CHECK(error != "none");
      is_noticed = is_noticed || is_payload_error(error, "use the same codec on every rank");
    }
    CHECK(is_noticed);
  }
}

TEST_CASE("another density, another size or another algorithm on one rank") {
  Group usual({.codec = {"topk", 0.02}, .num_elements = 2000});
  const GroupOptions others[] = {
      {.codec = {"topk", 0.04}, .num_elements = 2000},
      {.codec = {"topk", 0.02}, .num_elements = 4000},
      {.codec = {"topk", 0.02}, .schedule = "gather", .num_elements = 2000},
      {.codec = {"int8"}, .num_elements = 2000},
  };
  for (const GroupOptions& options : others) {
    Group other(options);
    const auto errors = errors_of(
        2, [&](int rank) { return std::pair(rank == 0 ? &usual : &other, ExchangeId{}); });
    for (const std::string& error : errors) CHECK(error != "none");
  }
}

// Passes messages on; flips a bit in the one that is number `damaged`.
class DamagingTransport final : public Transport {
 public:
  DamagingTransport(Transport& transport, int damaged, size_t byte)
      : transport_(transport), damaged_(damaged), byte_(byte) {}
  int rank() const override { return transport_.rank(); }
  int world_size() const override { return transport_.world_size(); }
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override {
    if (num_sent_++ != damaged_) return transport_.send(peer, tag, bytes);
    auto& copy = copies_.emplace_back(bytes.begin(), bytes.end());
    copy[byte_ % copy.size()] ^= std::byte{0x10};
    return transport_.send(peer, tag, copy);
  }
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes) override {
    return transport_.receive(peer, tag, bytes);
  }

 private:
  Transport& transport_;
  int damaged_;
  size_t byte_;
  int num_sent_ = 0;
  std::list<std::vector<std::byte>> copies_;
};

TEST_CASE("one flipped bit in any message is noticed by the rank that receives it") {
  constexpr int kWorldSize = 3;
  constexpr int kNumSlices = 2;
  for (const CodecSpec& codec : testing::tested_codecs()) {
    for (int damaged = 0; damaged < 2 * (kWorldSize - 1) * kNumSlices; ++damaged) {
      for (const size_t byte : {size_t{4}, size_t{45}, size_t{29}}) {
        CAPTURE(codec.name);
        CAPTURE(damaged);
        CAPTURE(byte);
        Group group({.codec = codec,
                     .world_size = kWorldSize,
                     .num_elements = 3 * 1024,
                     .slice_elements = 512});
        const auto gradients = testing::random_gradients(group.options(), Values::kNormal, 1);
        InProcessNetwork network(kWorldSize);
        std::unique_ptr<Transport> transports[kWorldSize];
        for (int rank = 0; rank < kWorldSize; ++rank) transports[rank] = network.transport(rank);
        DamagingTransport damaging(*transports[0], damaged, byte);
        const auto errors = testing::errors_of_ranks(network, [&](int rank) {
          Transport& transport = rank == 0 ? damaging : *transports[rank];
          group.run_rank(rank, gradients[static_cast<size_t>(rank)], transport, {});
        });
        int num_noticed = 0;
        for (const auto& error : errors) {
          num_noticed += is_payload_error(describe(error), "it was damaged on the way");
        }
        CHECK(num_noticed > 0);
        // The payload of a sum travels on before it is decoded, so that a rank further on may
        // notice it first and abort; what arrives in the reduce-scatter half is used here only.
        if (damaged < (kWorldSize - 1) * kNumSlices) {
          CHECK(is_payload_error(describe(errors[1]), "it was damaged on the way"));
          CHECK(num_noticed == 1);
        }
      }
    }
  }
}

TEST_CASE("a rank that never comes: abort ends the others' wait") {
  for (const Schedule& schedule : schedules()) {
    Group group({.schedule = schedule.name, .world_size = 3, .num_elements = 2000});
    InProcessNetwork network(3);
    const auto gradients = testing::random_gradients(group.options(), Values::kNormal, 1);
    const auto errors = testing::errors_of_ranks(network, [&](int rank) {
      if (rank == 2) throw std::runtime_error("rank 2 is gone");
      const auto transport = network.transport(rank);
      group.run_rank(rank, gradients[static_cast<size_t>(rank)], *transport, {});
    });
    for (const auto& error : errors) CHECK(error != nullptr);
  }
}

}  // namespace
}  // namespace fastcomm
