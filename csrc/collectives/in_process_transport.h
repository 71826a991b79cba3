#pragma once
// Ranks as threads of one process: for tests and simulation at any number of ranks.

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "collectives/transport.h"

namespace fastcomm {

// The network that the in-process ranks share.
class InProcessNetwork {
 public:
  explicit InProcessNetwork(int world_size);

  // The transport of one rank; the network must outlive it.
  std::unique_ptr<Transport> transport(int rank);
  int world_size() const { return world_size_; }

  // Ends every wait with an error, on all ranks: one of them has failed.
  void abort();

  struct Message;  // one end of a message: a send or a receive

 private:
  friend class InProcessTransport;
  friend class InProcessPending;
  using Channel = std::tuple<int, int, Tag>;  // from, to, tag

  // What the rank at one end of a channel waits for.
  std::condition_variable& changed_of(const Channel& channel, bool is_send);
  std::unique_ptr<PendingMessage> post(Channel channel, std::span<std::byte> bytes, bool is_send);

  const int world_size_;
  std::mutex mutex_;
  // By rank: of many ranks, only the one that a message is for should wake up.
  std::vector<std::unique_ptr<std::condition_variable>> changed_;
  bool aborted_ = false;
  // Unmatched ends; on one channel they are all sends or all receives.
  std::map<Channel, std::deque<std::shared_ptr<Message>>> unmatched_;
};

}  // namespace fastcomm
