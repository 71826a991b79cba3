#pragma once
// Passes all messages on: what transports of tests derive from that change or note some of them.

#include "collectives/transport.h"

namespace fastcomm::testing {

class ForwardingTransport : public Transport {
 public:
  explicit ForwardingTransport(Transport& transport) : transport_(transport) {}
  int rank() const override { return transport_.rank(); }
  int world_size() const override { return transport_.world_size(); }
  bool takes_shorter_messages() const override { return transport_.takes_shorter_messages(); }
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override {
    return transport_.send(peer, tag, bytes);
  }
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes) override {
    return transport_.receive(peer, tag, bytes);
  }

 private:
  Transport& transport_;
};

}  // namespace fastcomm::testing
