// The scatter-gather all-reduce.
//
// Words as in ring.cpp, but the ranks exchange directly, each with all others. Rank s owns segment
// s of the bucket:
//
//   scatter: every rank encodes its own part of each segment it does not own, and sends it to the
//     owner.
//   The owner adds what it received, in rank order, to its own part, encodes the sum, and this
//     payload is the result.
//   gather: the owner sends it to every other rank. All decode the same bytes: the results are
//     bit-identical.
//
// The bytes are those of the ring, but a value is encoded twice instead of N times, and it is two
// messages from anywhere instead of 2 (N-1) hops. In return every rank talks to every other.
//
// Memory: rank r has a *send slot* for each slice of each segment (of its own: the result) and as
// many *receive slots*, by peer. A peer's contribution to slice i of segment r arrives in the slot
// into which, later, slice i of the peer's own segment does. A rank posts a receive before it sends
// the message of the same tag, and all ranks send in the same order. No rank waits for a message
// before it has sent all that other ranks need to get there: no deadlock.

#include <algorithm>
#include <vector>

#include "collectives/schedules.h"

namespace fastcomm {
namespace {

class ScatterGather {
 public:
  explicit ScatterGather(Exchange& exchange)
      : exchange_(exchange), num_ranks_(exchange.world_size()), rank_(exchange.rank()) {
    const BucketShape shape = exchange_.shape();
    int64_t slot_bytes = 0;
    const std::vector<ElementRange> segments = cut_segments(shape, num_ranks_);
    for (ElementRange segment : segments) {
      slices_.push_back(cut_slices(segment, slice_elements(shape, segments.front().size())));
      num_slices_ = std::max(num_slices_, static_cast<int>(slices_.back().size()));
      for (ElementRange slice : slices_.back()) {
        slot_bytes = std::max(slot_bytes, exchange_.payload_bytes(slice));
      }
    }
    exchange_.buffers().reserve(2 * num_ranks_ * num_slices_, slot_bytes);
    receives_.resize(static_cast<size_t>(num_ranks_ * num_slices_));
  }

  void run() {
    exchange_.enter_hop(0);
    for (int slice = 0; slice < num_slices_; ++slice) {
      for_each_peer([&](int peer) { post_receive(peer, slice, rank_, tag_of_scatter(slice)); });
    }
    for_each_peer([&](int owner) {
      for (int slice = 0; slice < num_slices_; ++slice) contribute(owner, slice);
    });
    for (int slice = 0; slice < num_slices_; ++slice) reduce(slice);
    exchange_.enter_hop(1);
    for (int slice = 0; slice < num_slices_; ++slice) {
      if (exists(rank_, slice)) decode(rank_, slice, send_slot(rank_, slice));
      for_each_peer([&](int peer) {
        if (!exists(peer, slice)) return;
        exchange_.wait(receive(peer, slice));
        decode(peer, slice, receive_slot(peer, slice, peer));
      });
    }
    for (auto& send : sends_) exchange_.wait(send);
  }

 private:
  // The other ranks, each rank beginning with the next one, so that not all turn to the same.
  template <class Visit>
  void for_each_peer(Visit&& visit) const {
    for (int i = 1; i < num_ranks_; ++i) visit((rank_ + i) % num_ranks_);
  }

  bool exists(int segment, int slice) const {
    return static_cast<size_t>(slice) < slices_[static_cast<size_t>(segment)].size();
  }
  ElementRange range(int segment, int slice) const {
    return slices_[static_cast<size_t>(segment)][static_cast<size_t>(slice)];
  }
  std::span<std::byte> send_slot(int segment, int slice) {
    return slot(segment * num_slices_ + slice, segment, slice);
  }
  std::span<std::byte> receive_slot(int peer, int slice, int segment) {
    return slot((num_ranks_ + peer) * num_slices_ + slice, segment, slice);
  }
  std::span<std::byte> slot(int index, int segment, int slice) {
    const int64_t bytes = exchange_.payload_bytes(range(segment, slice));
    return exchange_.buffers().buffer(index).first(static_cast<size_t>(bytes));
  }
  std::unique_ptr<PendingMessage>& receive(int peer, int slice) {
    return receives_[static_cast<size_t>(peer * num_slices_ + slice)];
  }
  Tag tag_of_scatter(int slice) const { return static_cast<Tag>(slice); }
  Tag tag_of_gather(int slice) const { return static_cast<Tag>(num_slices_ + slice); }

  void post_receive(int peer, int slice, int segment, Tag tag) {
    if (!exists(segment, slice)) return;
    receive(peer, slice) = exchange_.receive(peer, tag, receive_slot(peer, slice, segment));
  }

  void contribute(int owner, int slice) {
    if (!exists(owner, slice)) return exchange_.skip_send(owner, tag_of_scatter(slice));
    const std::span<std::byte> payload = send_slot(owner, slice);
    exchange_.encode(range(owner, slice), {}, {}, payload, exchange_.label(owner, slice));
    sends_.push_back(exchange_.send(owner, tag_of_scatter(slice), payload));
  }

  // The sum goes out when the slots of what it was made of have been read, and receive again.
  void reduce(int slice) {
    if (exists(rank_, slice)) encode_sum(slice);
    for_each_peer([&](int peer) { post_receive(peer, slice, peer, tag_of_gather(slice)); });
    for_each_peer([&](int peer) {
      if (!exists(rank_, slice)) return exchange_.skip_send(peer, tag_of_gather(slice));
      sends_.push_back(exchange_.send(peer, tag_of_gather(slice), send_slot(rank_, slice)));
    });
  }

  void encode_sum(int slice) {
    const MessageLabel label = exchange_.label(rank_, slice);
    std::vector<std::span<const std::byte>> received;
    for (int peer = 0; peer < num_ranks_; ++peer) {
      if (peer == rank_) continue;
      exchange_.wait(receive(peer, slice));
      received.push_back(receive_slot(peer, slice, rank_));
    }
    const std::vector<MessageLabel> labels(received.size(), label);
    exchange_.encode(range(rank_, slice), received, labels, send_slot(rank_, slice), label);
  }

  void decode(int segment, int slice, std::span<const std::byte> payload) {
    const MessageLabel label = exchange_.label(segment, slice);
    exchange_.decode(range(segment, slice), {&payload, 1}, {&label, 1});
  }

  Exchange& exchange_;
  const int num_ranks_;
  const int rank_;
  std::vector<std::vector<ElementRange>> slices_;  // of each segment
  int num_slices_ = 0;                             // of the longest segment
  std::vector<std::unique_ptr<PendingMessage>> receives_;
  std::vector<std::unique_ptr<PendingMessage>> sends_;
};

}  // namespace

void scatter_gather_all_reduce(Exchange& exchange) { ScatterGather(exchange).run(); }

}  // namespace fastcomm
