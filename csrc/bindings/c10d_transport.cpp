#include "bindings/c10d_transport.h"

#include <utility>

namespace fastcomm {
namespace {

class C10dPending final : public PendingMessage {
 public:
  C10dPending(Connections& connections, Connections::Work work)
      : connections_(connections), work_(std::move(work)) {}
  ~C10dPending() override { connections_.forget(work_); }

  void wait() override { connections_.wait(work_); }

 private:
  Connections& connections_;
  const Connections::Work work_;
};

}  // namespace

std::unique_ptr<PendingMessage> C10dTransport::send(int peer, Tag tag,
                                                    std::span<const std::byte> bytes) {
  return std::make_unique<C10dPending>(connections_,
                                       connections_.send(lane_, peer, first_tag_ + tag, bytes));
}

std::unique_ptr<PendingMessage> C10dTransport::receive(int peer, Tag tag,
                                                       std::span<std::byte> bytes) {
  return std::make_unique<C10dPending>(connections_,
                                       connections_.receive(lane_, peer, first_tag_ + tag, bytes));
}

}  // namespace fastcomm
