// The error-feedback ring all-reduce.
//
// Words. N ranks form a ring; each sends to the *next* rank and receives from the *previous* one.
// A bucket is cut in N *segments*, a segment in *slices*, each of which is one message, so that
// encoding, the wire and decoding of different slices overlap. A *hop* is one send to the next
// rank. There are 2 (N-1) hops:
//
//   reduce-scatter, hops 0 .. N-2: at hop h, rank r sends segment r - h. It holds
//     value = gradient + residual (+ decode(received) from hop 1 on), sends encode(value) and keeps
//     residual = value - decode(sent). What any rank's encoding leaves out stays with that rank.
//   After them rank r *owns* segment r + 1: it adds its own part to what it received, encodes the
//     sum once more (its residual again), and this payload is the result.
//   all-gather, hops N-1 .. 2N-3: the owners' payloads travel on verbatim. Every rank, the owner
//     too, decodes the same bytes: the results are bit-identical.
//
// Ring all-reduce: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
// workstations", 2009. Error feedback: Seide et al., "1-bit stochastic gradient descent", 2014;
// here at every hop, so that nothing is lost in partial sums either.
//
// Order. Hops are walked one after another, and within a hop slice after slice; message t =
// hop * num_slices + slice. Hop 0 is encoded a few slices ahead of what arrives: enough to keep the
// wire busy, and no more, because the threads that feed the wire need the processor, too. Each rank
// has two payload buffers with a slot for each slice. In the reduce-scatter one receives and the
// other sends; in the all-gather they alternate. A slot is reused only after its send has
// completed, and every receive is posted as soon as its slot is free, a hop ahead and before this
// rank's own send of that hop. A wait for message t depends on messages before t only, on every
// rank: no deadlock, whatever the sizes.

#include <algorithm>
#include <array>
#include <vector>

#include "collectives/schedules.h"

namespace fastcomm {
namespace {

// Of hop 0: one that is on the wire, one that waits for it, one that may be late.
constexpr size_t kSlicesAhead = 3;

class Ring {
 public:
  explicit Ring(Exchange& exchange)
      : exchange_(exchange),
        num_ranks_(exchange.world_size()),
        rank_(exchange.rank()),
        last_hop_(2 * num_ranks_ - 3) {
    const BucketShape shape = exchange_.shape();
    const std::vector<ElementRange> segments = cut_segments(shape, num_ranks_);
    for (ElementRange segment : segments) {
      slices_.push_back(cut_slices(segment, slice_elements(shape, segments.front().size())));
      num_slices_ = std::max(num_slices_, slices_.back().size());
    }
    int64_t slot_bytes = 0;
    for (const auto& segment : slices_) {
      for (ElementRange slice : segment) {
        slot_bytes = std::max(slot_bytes, exchange_.payload_bytes(slice));
      }
    }
    const int num_slots = num_ranks_ == 1 ? 1 : 2 * static_cast<int>(num_slices_);
    exchange_.buffers().reserve(num_slots, slot_bytes);
    for (auto& side : sends_) side.resize(num_slices_);
    receives_.resize(num_slices_);
  }

  void run() {
    exchange_.enter_hop(0);
    if (num_ranks_ == 1) return reduce_alone();
    for (size_t slice = 0; slice < num_slices_; ++slice) post_receive(0, slice);
    for (size_t slice = 0; slice < std::min(kSlicesAhead, num_slices_); ++slice)
      encode_and_send(0, slice);
    for (int hop = 0; hop <= last_hop_; ++hop) {
      for (size_t slice = 0; slice < num_slices_; ++slice) {
        if (hop == 0 && slice + kSlicesAhead < num_slices_)
          encode_and_send(0, slice + kSlicesAhead);
        process(hop, slice);
      }
    }
    for (auto& side : sends_) {
      for (auto& send : side) exchange_.wait(send);
    }
  }

 private:
  // Which segment arrives at a hop; it is what the next hop sends on.
  int received_segment(int hop) const { return modulo(rank_ - hop - 1); }
  int sent_segment(int hop) const { return modulo(rank_ - hop); }
  int modulo(int segment) const { return (segment % num_ranks_ + num_ranks_) % num_ranks_; }
  int next() const { return (rank_ + 1) % num_ranks_; }
  int previous() const { return (rank_ + num_ranks_ - 1) % num_ranks_; }
  bool is_reduce_scatter(int hop) const { return hop < num_ranks_ - 1; }

  // Reduce-scatter hops receive into buffer 0; then the buffers alternate.
  int receive_side(int hop) const {
    return is_reduce_scatter(hop) ? 0 : (hop - (num_ranks_ - 1)) % 2;
  }
  // Reduce-scatter and the owner's payload are sent from buffer 1; the rest goes out of the slot
  // that it came into.
  int send_side(int hop) const { return hop < num_ranks_ ? 1 : receive_side(hop - 1); }

  bool exists(int segment, size_t slice) const {
    return slice < slices_[static_cast<size_t>(segment)].size();
  }
  ElementRange range(int segment, size_t slice) const {
    return slices_[static_cast<size_t>(segment)][slice];
  }
  std::span<std::byte> slot(int side, int segment, size_t slice) {
    const auto bytes = static_cast<size_t>(exchange_.payload_bytes(range(segment, slice)));
    const auto index = static_cast<size_t>(side) * num_slices_ + slice;
    return exchange_.buffers().buffer(static_cast<int>(index)).first(bytes);
  }
  Tag tag(int hop, size_t slice) const {
    return static_cast<Tag>(static_cast<size_t>(hop) * num_slices_ + slice);
  }

  void post_receive(int hop, size_t slice) {
    const int segment = received_segment(hop);
    if (!exists(segment, slice)) return;
    const int side = receive_side(hop);
    exchange_.wait(sends_[static_cast<size_t>(side)][slice]);
    receives_[slice] = exchange_.receive(previous(), tag(hop, slice), slot(side, segment, slice));
  }

  void send(int hop, size_t slice) {
    const int segment = sent_segment(hop);
    if (!exists(segment, slice)) return exchange_.skip_send(next(), tag(hop, slice));
    const int side = send_side(hop);
    sends_[static_cast<size_t>(side)][slice] =
        exchange_.send(next(), tag(hop, slice), slot(side, segment, slice));
  }

  // What arrived at the hop before has been read by then: its slot can receive this hop's.
  void encode_and_send(int hop, size_t slice) {
    if (exists(sent_segment(hop), slice)) encode(hop, slice);
    if (hop > 0) post_receive(hop, slice);
    send(hop, slice);
  }

  // Hop 0 encodes this rank's own gradient, the others what arrived at the hop before as well.
  void encode(int hop, size_t slice) {
    const int segment = sent_segment(hop);
    const MessageLabel label = exchange_.label(segment, static_cast<int64_t>(slice));
    exchange_.wait(sends_[1][slice]);
    const size_t num_received = hop == 0 ? 0 : 1;
    const std::span<const std::byte> received = slot(0, segment, slice);
    exchange_.encode(range(segment, slice), {&received, num_received}, {&label, num_received},
                     slot(1, segment, slice), label);
  }

  // Handles what arrives at `hop`: passes it on, and keeps a receive posted for the next hop.
  void process(int hop, size_t slice) {
    const int segment = received_segment(hop);
    exchange_.enter_hop(hop);
    exchange_.wait(receives_[slice]);
    if (is_reduce_scatter(hop)) {
      encode_and_send(hop + 1, slice);
      if (hop == num_ranks_ - 2) decode_slot(segment, slice, 1);  // the owner's own payload
    } else {
      if (hop < last_hop_) {
        post_receive(hop + 1, slice);
        send(hop + 1, slice);
      }
      decode_slot(segment, slice, receive_side(hop));
    }
  }

  void decode_slot(int segment, size_t slice, int side) {
    if (!exists(segment, slice)) return;
    decode(range(segment, slice), slot(side, segment, slice),
           exchange_.label(segment, static_cast<int64_t>(slice)));
  }

  void decode(ElementRange elements, std::span<const std::byte> payload,
              const MessageLabel& label) {
    exchange_.decode(elements, {&payload, 1}, {&label, 1});
  }

  // One rank: nothing is sent, the owner's payload is the result.
  void reduce_alone() {
    for (size_t slice = 0; slice < num_slices_; ++slice) {
      const MessageLabel label = exchange_.label(0, static_cast<int64_t>(slice));
      const std::span<std::byte> payload =
          slot(0, 0, 0).first(static_cast<size_t>(exchange_.payload_bytes(range(0, slice))));
      exchange_.encode(range(0, slice), {}, {}, payload, label);
      decode(range(0, slice), payload, label);
    }
  }

  Exchange& exchange_;
  const int num_ranks_;
  const int rank_;
  const int last_hop_;
  std::vector<std::vector<ElementRange>> slices_;                      // of each segment
  size_t num_slices_ = 0;                                              // of the longest segment
  std::array<std::vector<std::unique_ptr<PendingMessage>>, 2> sends_;  // from each buffer's slots
  std::vector<std::unique_ptr<PendingMessage>> receives_;
};

}  // namespace

void ring_all_reduce(Exchange& exchange) { Ring(exchange).run(); }

}  // namespace fastcomm
