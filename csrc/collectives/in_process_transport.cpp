#include "collectives/in_process_transport.h"

#include <algorithm>

#include "core/check.h"

namespace fastcomm {

struct InProcessNetwork::Message {
  std::span<std::byte> bytes;
  bool is_send;
  bool done = false;
  bool is_too_large = false;  // for its receive
};

class InProcessPending final : public PendingMessage {
 public:
  InProcessPending(InProcessNetwork& network, InProcessNetwork::Channel channel,
                   std::shared_ptr<InProcessNetwork::Message> message)
      : network_(network), channel_(channel), message_(std::move(message)) {}

  // A message that is given up must not be matched any more: its memory may be gone.
  ~InProcessPending() override {
    const std::lock_guard lock(network_.mutex_);
    const auto waiting = network_.unmatched_.find(channel_);
    if (waiting == network_.unmatched_.end()) return;
    std::erase(waiting->second, message_);
    if (waiting->second.empty()) network_.unmatched_.erase(waiting);
  }

  void wait() override {
    std::unique_lock lock(network_.mutex_);
    network_.changed_of(channel_, message_->is_send).wait(lock, [&] {
      return message_->done || network_.aborted_;
    });
    FASTCOMM_CHECK(message_->done, "the exchange was aborted");
    FASTCOMM_CHECK(!message_->is_too_large, "a message was larger than its receive");
  }

 private:
  InProcessNetwork& network_;
  const InProcessNetwork::Channel channel_;
  std::shared_ptr<InProcessNetwork::Message> message_;
};

class InProcessTransport final : public Transport {
 public:
  InProcessTransport(InProcessNetwork& network, int rank) : network_(network), rank_(rank) {}

  int rank() const override { return rank_; }
  int world_size() const override { return network_.world_size(); }
  bool takes_shorter_messages() const override { return true; }
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override {
    // Sends and receives share one record; the bytes of a send are only read.
    return network_.post({rank_, peer, tag}, {const_cast<std::byte*>(bytes.data()), bytes.size()},
                         true);
  }
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes) override {
    return network_.post({peer, rank_, tag}, bytes, false);
  }

 private:
  InProcessNetwork& network_;
  const int rank_;
};

InProcessNetwork::InProcessNetwork(int world_size) : world_size_(world_size) {
  FASTCOMM_CHECK(world_size > 0, "world size " << world_size << " is not positive");
  changed_.resize(static_cast<size_t>(world_size));
  for (auto& changed : changed_) changed = std::make_unique<std::condition_variable>();
}

std::condition_variable& InProcessNetwork::changed_of(const Channel& channel, bool is_send) {
  const int rank = is_send ? std::get<0>(channel) : std::get<1>(channel);
  return *changed_[static_cast<size_t>(rank)];
}

std::unique_ptr<Transport> InProcessNetwork::transport(int rank) {
  return std::make_unique<InProcessTransport>(*this, rank);
}

void InProcessNetwork::abort() {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  for (const auto& changed : changed_) changed->notify_all();
}

std::unique_ptr<PendingMessage> InProcessNetwork::post(Channel channel, std::span<std::byte> bytes,
                                                       bool is_send) {
  auto message = std::make_shared<Message>(Message{bytes, is_send});
  const std::lock_guard lock(mutex_);
  auto& waiting = unmatched_[channel];
  if (waiting.empty() || waiting.front()->is_send == is_send) {
    waiting.push_back(message);
  } else {
    Message& other = *waiting.front();
    const Message& from = is_send ? *message : other;
    const Message& to = is_send ? other : *message;
    const bool is_too_large = from.bytes.size() > to.bytes.size();
    if (!is_too_large) std::copy(from.bytes.begin(), from.bytes.end(), to.bytes.begin());
    for (Message* end : {message.get(), &other}) {
      end->done = true;
      end->is_too_large = is_too_large;
    }
    waiting.pop_front();
    if (waiting.empty()) unmatched_.erase(channel);
    changed_of(channel, !is_send).notify_all();  // the other end may be waiting
  }
  return std::make_unique<InProcessPending>(*this, channel, std::move(message));
}

}  // namespace fastcomm
