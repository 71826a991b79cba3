#pragma once
// One lane's transport over the connections that all lanes share.

#include "bindings/connections.h"
#include "collectives/transport.h"

namespace fastcomm {

class C10dTransport final : public Transport {
 public:
  // `first_tag`: the tags of this transport start here. The connections must outlive it.
  C10dTransport(Connections& connections, size_t lane, Tag first_tag)
      : connections_(connections), lane_(lane), first_tag_(first_tag) {}

  int rank() const override { return connections_.rank(); }
  int world_size() const override { return connections_.world_size(); }
  bool takes_shorter_messages() const override { return connections_.is_gloo(); }
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override;
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes) override;

 private:
  Connections& connections_;
  const size_t lane_;
  const Tag first_tag_;
};

}  // namespace fastcomm
