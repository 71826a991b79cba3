#pragma once
// Transport over any c10d backend that can send and receive.

#include <mutex>
#include <set>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "collectives/transport.h"

namespace fastcomm {

class C10dTransport final : public Transport {
 public:
  // `backends`: over the same ranks; a message uses the one numbered by its sender's rank, modulo
  // their number. None for a group of one rank, which sends nothing. `first_tag`: the tags of this
  // transport start here, so that several can share backends.
  C10dTransport(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, Tag first_tag);

  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  bool takes_shorter_messages() const override;
  std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                       std::span<const std::byte> bytes) override;
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes) override;

  // Ends what is under way with an error, and whatever comes later. From any thread.
  void abort();

 private:
  friend class C10dPending;
  std::unique_ptr<PendingMessage> track(c10::intrusive_ptr<c10d::Work> work, const char* what,
                                        int peer);

  std::vector<c10::intrusive_ptr<c10d::Backend>> backends_;
  const int rank_;
  const int world_size_;
  const Tag first_tag_;
  std::mutex mutex_;  // guards the two below
  bool aborted_ = false;
  std::set<c10d::Work*> under_way_;  // kept alive by their messages
};

}  // namespace fastcomm
