#pragma once
// A Transport over a network that executes what was enqueued in order, and whose sends wait there
// for their receives: NCCL. No call here waits: what a message needs and what needs the message are
// put in order on a device.
//
// In such a network two ranks that first send to each other wait for ever. So messages go out in
// *groups*, whose parts run at the same time: a send to rank r + i, and the receive from rank r - i
// with the same tag. The send to r + i is paired there with a receive from its own r + i - i = r:
// the two ends of a message are in groups of the same name (i, tag), and if all ranks launch groups
// of the same names in the same order, no deadlock can arise. Proof: let k be the first group, in
// that order, that does not complete. All groups before it have completed on all ranks, so every
// rank's device comes to its group k, unless it waits there for something else; but what a rank's
// device does before its group k depends only on groups before k. So all ranks come to their groups
// k, whose sends find their receives.
//
// That the names and their order are the same is the schedules' duty (transport.h): they send at
// the same places on all ranks, or skip them, and post a receive before the send of its group. Then
// receive() need only note what is to be received; send() and skip_send() launch the group.

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "collectives/transport.h"

namespace fastcomm {

// Where groups run.
class GroupLauncher {
 public:
  struct Send {
    int peer;
    std::span<const std::byte> bytes;
  };
  struct Receive {
    int peer;
    std::span<std::byte> bytes;
  };

  virtual ~GroupLauncher() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Enqueues a group of a send, a receive, or both. It runs when what was enqueued before has run,
  // groups and encodings; between two ranks the sends meet the receives in their order.
  // wait() of what is returned makes whatever is enqueued later run after the group.
  virtual std::unique_ptr<PendingMessage> launch(const std::optional<Send>& send,
                                                 const std::optional<Receive>& receive) = 0;
};

// For one exchange: all tags between two ranks differ. Not for several threads.
class PairedTransport final : public Transport {
 public:
  explicit PairedTransport(GroupLauncher& launcher) : launcher_(launcher) {}

  int rank() const override { return launcher_.rank(); }
  int world_size() const override { return launcher_.world_size(); }
  bool takes_shorter_messages() const override { return false; }
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override;
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes) override;
  void skip_send(int peer, Tag tag) override;

 private:
  friend class PairedMessage;
  struct Group;
  struct PostedReceive {
    std::span<std::byte> bytes;
    std::shared_ptr<Group> group;  // to be launched
  };

  // Launches the group of a send to `peer` with the receive that is paired with it, whichever of
  // the two there are.
  std::shared_ptr<Group> launch(int peer, Tag tag, const std::optional<GroupLauncher::Send>& send);

  GroupLauncher& launcher_;
  std::map<std::pair<int, Tag>, PostedReceive> posted_;  // by the rank it is from, and the tag
  int64_t num_launched_ = 0;
  int64_t num_waited_ = 0;  // groups that what is enqueued from now on comes after
};

}  // namespace fastcomm
