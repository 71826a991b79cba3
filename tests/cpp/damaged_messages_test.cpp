// Messages that are damaged on the way: an error on a rank that receives them, never a wrong sum.

#include <functional>
#include <list>
#include <string>

#include "all_reduce.h"
#include "doctest.h"
#include "forwarding_transport.h"
#include "rank_errors.h"

namespace fastcomm {
namespace {

using testing::describe;
using testing::ForwardingTransport;
using testing::Group;
using testing::GroupOptions;
using testing::is_payload_error;
using testing::Values;

using Message = std::vector<std::byte>;
// Changes a message; `earlier`: what the rank has sent before it.
using Damage = std::function<void(Message& message, const std::list<Message>& earlier)>;

// Passes messages on, and damages the one that is number `damaged`.
class DamagingTransport final : public ForwardingTransport {
 public:
  DamagingTransport(Transport& transport, int damaged, const Damage& damage)
      : ForwardingTransport(transport), damaged_(damaged), damage_(damage) {}
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override {
    const bool is_damaged = static_cast<int>(messages_.size()) == damaged_;
    Message message(bytes.begin(), bytes.end());
    if (is_damaged) damage_(message, messages_);
    return ForwardingTransport::send(peer, tag, messages_.emplace_back(std::move(message)));
  }

 private:
  const int damaged_;
  const Damage& damage_;
  std::list<Message> messages_;
};

Damage flipped_bit(size_t byte) {
  return
      [byte](Message& message, const auto&) { message[byte % message.size()] ^= std::byte{0x10}; };
}

constexpr int kWorldSize = 3;
constexpr int kNumSlices = 2;  // of each segment

GroupOptions options_of(std::string_view schedule, const CodecSpec& codec) {
  return {.codec = codec,
          .schedule = schedule,
          .world_size = kWorldSize,
          .num_elements = kWorldSize * kNumSlices * 512,
          .slice_elements = 512};
}

// What the ranks say if the message of this number that rank 0 sends is damaged.
std::vector<std::string> errors_of_damage(const GroupOptions& options, int damaged,
                                          const Damage& damage) {
  Group group(options);
  const auto gradients = testing::random_gradients(group.options(), Values::kNormal, 1);
  InProcessNetwork network(kWorldSize);
  const auto errors = errors_of_ranks(network, [&](int rank) {
    const auto transport = network.transport(rank);
    DamagingTransport damaging(*transport, rank == 0 ? damaged : -1, damage);
    group.run_rank(rank, gradients[static_cast<size_t>(rank)], damaging, {});
  });
  return describe(errors);
}

// Calls visit(options, number) for every message that rank 0 sends with any schedule: every
// schedule sends at least so many, gather sends more.
template <class Visit>
void for_each_message(Visit&& visit) {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      for (int number = 0; number < 2 * (kWorldSize - 1) * kNumSlices; ++number) {
        CAPTURE(schedule.name);
        CAPTURE(codec.name);
        CAPTURE(number);
        visit(options_of(schedule.name, codec), number);
      }
    }
  }
}

void check_noticed_by_a_receiver(const std::vector<std::string>& errors, const std::string& why) {
  int num_noticed = 0;
  for (const std::string& error : errors) num_noticed += is_payload_error(error, why);
  CHECK(num_noticed > 0);
  CHECK_FALSE(is_payload_error(errors[0], why));  // the sender has nothing to notice
}

TEST_CASE("one flipped bit in any message is noticed by a rank that receives it") {
  for_each_message([](const GroupOptions& options, int number) {
    for (const size_t byte : {size_t{4}, size_t{45}, size_t{29}}) {
      CAPTURE(byte);
      check_noticed_by_a_receiver(errors_of_damage(options, number, flipped_bit(byte)),
                                  "it was damaged on the way");
    }
  });
}

TEST_CASE("a message of which only the beginning arrives is noticed by a rank that receives it") {
  // More than padding is missing.
  for (const double share : {0.0, 0.01, 0.5}) {
    CAPTURE(share);
    for_each_message([share](const GroupOptions& options, int number) {
      const auto errors = errors_of_damage(options, number, [share](Message& message, const auto&) {
        message.resize(static_cast<size_t>(share * static_cast<double>(message.size())));
      });
      check_noticed_by_a_receiver(errors, "");
    });
  }
}

TEST_CASE("a message that is repeated in place of the next one is noticed by a receiver") {
  for_each_message([](const GroupOptions& options, int number) {
    if (number == 0) return;  // nothing came before
    bool is_damaged = false;
    const auto errors =
        errors_of_damage(options, number, [&](Message& message, const auto& earlier) {
          // scatter_gather sends the same message to several ranks.
          is_damaged = message != earlier.back();
          message = earlier.back();
        });
    if (is_damaged) check_noticed_by_a_receiver(errors, "");
  });
}

// Holds its first message back until the second one has been sent in its place.
class ReorderingTransport final : public ForwardingTransport {
 public:
  using ForwardingTransport::ForwardingTransport;
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override {
    ++num_sent_;
    if (num_sent_ == 1) {
      first_tag_ = tag;
      first_.assign(bytes.begin(), bytes.end());
      return std::make_unique<Sent>();
    }
    if (num_sent_ > 2) return ForwardingTransport::send(peer, tag, bytes);
    second_in_place_of_first_ = ForwardingTransport::send(peer, first_tag_, bytes);
    return ForwardingTransport::send(peer, tag, first_);
  }

 private:
  struct Sent final : PendingMessage {
    void wait() override {}
  };

  int num_sent_ = 0;
  Tag first_tag_ = 0;
  Message first_;
  std::unique_ptr<PendingMessage> second_in_place_of_first_;
};

TEST_CASE("two messages that arrive in another order are noticed by a rank that receives them") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      CAPTURE(schedule.name);
      CAPTURE(codec.name);
      Group group(options_of(schedule.name, codec));
      const auto gradients = testing::random_gradients(group.options(), Values::kNormal, 1);
      InProcessNetwork network(kWorldSize);
      const auto errors = errors_of_ranks(network, [&](int rank) {
        const auto transport = network.transport(rank);
        ReorderingTransport reordering(*transport);
        Transport& used = rank == 0 ? reordering : *transport;
        group.run_rank(rank, gradients[static_cast<size_t>(rank)], used, {});
      });
      check_noticed_by_a_receiver(describe(errors), "messages were repeated or reordered");
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
        const auto errors = errors_of_damage(options_of(schedule, codec), damaged, flipped_bit(45));
        // Ring: all to the next rank. Scatter-gather: all slices to one owner, then to the other.
        const size_t receiver = schedule == "ring" || damaged < kNumSlices ? 1 : 2;
        CHECK(is_payload_error(errors[receiver], "it was damaged on the way"));
        CHECK_FALSE(is_payload_error(errors[3 - receiver], "it was damaged on the way"));
      }
    }
  }
}

}  // namespace
}  // namespace fastcomm
