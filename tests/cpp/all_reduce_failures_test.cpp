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
      {.codec = {"topk", 0.02}, .schedule = "scatter_gather", .num_elements = 2000},
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
  bool takes_shorter_messages() const override { return transport_.takes_shorter_messages(); }
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

constexpr int kWorldSize = 3;
constexpr int kNumSlices = 2;  // of each segment

// What the ranks say if the message of this number that rank 0 sends is damaged.
std::vector<std::string> errors_of_damage(const GroupOptions& options, int damaged, size_t byte) {
  Group group(options);
  const auto gradients = testing::random_gradients(group.options(), Values::kNormal, 1);
  InProcessNetwork network(kWorldSize);
  const auto errors = testing::errors_of_ranks(network, [&](int rank) {
    const auto transport = network.transport(rank);
    DamagingTransport damaging(*transport, rank == 0 ? damaged : -1, byte);
    group.run_rank(rank, gradients[static_cast<size_t>(rank)], damaging, {});
  });
  std::vector<std::string> described;
  for (const auto& error : errors) described.push_back(describe(error));
  return described;
}

TEST_CASE("one flipped bit in any message is noticed by a rank that receives it") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      // Every schedule sends at least so many; gather sends more.
      for (int damaged = 0; damaged < 2 * (kWorldSize - 1) * kNumSlices; ++damaged) {
        for (const size_t byte : {size_t{4}, size_t{45}, size_t{29}}) {
          CAPTURE(schedule.name);
          CAPTURE(codec.name);
          CAPTURE(damaged);
          CAPTURE(byte);
          const GroupOptions options{.codec = codec,
                                     .schedule = schedule.name,
                                     .world_size = kWorldSize,
                                     .num_elements = kWorldSize * kNumSlices * 512,
                                     .slice_elements = 512};
          const auto errors = errors_of_damage(options, damaged, byte);
          int num_noticed = 0;
          for (const std::string& error : errors) {
            num_noticed += is_payload_error(error, "it was damaged on the way");
          }
          CHECK(num_noticed > 0);
          // The sender has nothing to notice.
          CHECK_FALSE(is_payload_error(errors[0], "it was damaged on the way"));
        }
      }
    }
  }
}

TEST_CASE("ring and scatter_gather: what the owner of a sum receives is noticed there, alone") {
  for (const std::string_view schedule : {"ring", "scatter_gather"}) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      for (int damaged = 0; damaged < (kWorldSize - 1) * kNumSlices; ++damaged) {
        CAPTURE(schedule);
        CAPTURE(codec.name);
        CAPTURE(damaged);
        const GroupOptions options{.codec = codec,
                                   .schedule = schedule,
                                   .world_size = kWorldSize,
                                   .num_elements = kWorldSize * kNumSlices * 512,
                                   .slice_elements = 512};
        const auto errors = errors_of_damage(options, damaged, 45);
        // Ring: all to the next rank. Scatter-gather: all slices to one owner, then to the other.
        const size_t receiver = schedule == "ring" || damaged < kNumSlices ? 1 : 2;
        CHECK(is_payload_error(errors[receiver], "it was damaged on the way"));
        CHECK_FALSE(is_payload_error(errors[3 - receiver], "it was damaged on the way"));
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
