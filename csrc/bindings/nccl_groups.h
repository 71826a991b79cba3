#pragma once
// Groups of NCCL's sends and receives, through torch's process group.

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "collectives/paired_transport.h"

namespace fastcomm {

// The backend has a stream of its own, which at each group waits for the *current* stream of the
// calling thread; wait() makes the current stream wait for the backend's. So all calls must be made
// with the same current stream, that of the codec. The host waits for nothing.
class NcclGroups final : public GroupLauncher {
 public:
  // `backend`: NCCL; nullptr for a group of one rank, which launches nothing.
  NcclGroups(c10::intrusive_ptr<c10d::Backend> backend, c10::Device device)
      : backend_(std::move(backend)), device_(device) {}

  int rank() const override { return backend_ ? backend_->getRank() : 0; }
  int world_size() const override { return backend_ ? backend_->getSize() : 1; }
  std::unique_ptr<PendingMessage> launch(const std::optional<Send>& send,
                                         const std::optional<Receive>& receive) override;

 private:
  c10::intrusive_ptr<c10d::Backend> backend_;
  const c10::Device device_;
};

}  // namespace fastcomm
