#include "collectives/paired_transport.h"

#include "core/check.h"

namespace fastcomm {

struct PairedTransport::Group {
  std::unique_ptr<PendingMessage> pending;  // nullptr: not launched yet
  int64_t number = 0;                       // from 1, in the order of launching
};

class PairedMessage final : public PendingMessage {
 public:
  PairedMessage(PairedTransport& transport, std::shared_ptr<PairedTransport::Group> group)
      : transport_(transport), group_(std::move(group)) {}

  void wait() override {
    FASTCOMM_CHECK(group_->pending != nullptr,
                   "a schedule waits for a message before it sends the one that is paired with it");
    // Groups run in order: who comes after a group comes after those before it.
    if (group_->number <= transport_.num_waited_) return;
    group_->pending->wait();
    transport_.num_waited_ = group_->number;
  }

 private:
  PairedTransport& transport_;
  std::shared_ptr<PairedTransport::Group> group_;
};

std::shared_ptr<PairedTransport::Group> PairedTransport::launch(
    int peer, Tag tag, const std::optional<GroupLauncher::Send>& send) {
  const int distance = peer - rank() + world_size();
  const int counterpart = (rank() - distance + 2 * world_size()) % world_size();
  std::optional<GroupLauncher::Receive> receive;
  auto group = std::make_shared<Group>();
  if (const auto posted = posted_.find({counterpart, tag}); posted != posted_.end()) {
    receive = {counterpart, posted->second.bytes};
    group = posted->second.group;
    posted_.erase(posted);
  }
  if (!send && !receive) return group;
  group->pending = launcher_.launch(send, receive);
  group->number = ++num_launched_;
  return group;
}

std::unique_ptr<PendingMessage> PairedTransport::send(int peer, Tag tag,
                                                      std::span<const std::byte> bytes) {
  return std::make_unique<PairedMessage>(*this,
                                         launch(peer, tag, GroupLauncher::Send{peer, bytes}));
}

void PairedTransport::skip_send(int peer, Tag tag) { launch(peer, tag, std::nullopt); }

std::unique_ptr<PendingMessage> PairedTransport::receive(int peer, Tag tag,
                                                         std::span<std::byte> bytes) {
  auto group = std::make_shared<Group>();
  const bool is_new = posted_.emplace(std::pair(peer, tag), PostedReceive{bytes, group}).second;
  FASTCOMM_CHECK(is_new, "a second receive from rank " << peer << " with tag " << tag);
  return std::make_unique<PairedMessage>(*this, std::move(group));
}

}  // namespace fastcomm
