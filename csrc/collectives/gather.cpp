// The gather all-reduce.
//
// Words as in ring.cpp, but a bucket is not cut in segments: each rank encodes all of it once. The
// payloads circulate in a ring all-gather of N-1 hops: at hop h, rank r passes on the payload of
// rank r - h. Every rank ends with all N payloads and sums them in rank order, so that the results
// are bit-identical. For sparse codecs the sum is the exact union of what the ranks selected.

#include <algorithm>
#include <vector>

#include "collectives/schedules.h"

namespace fastcomm {

void gather_all_reduce(Exchange& exchange) {
  const int num_ranks = exchange.world_size();
  const int rank = exchange.rank();
  const int next = (rank + 1) % num_ranks;
  const int previous = (rank + num_ranks - 1) % num_ranks;
  const BucketShape shape = exchange.shape();
  const std::vector<ElementRange> slices =
      cut_slices({0, shape.num_elements}, slice_elements(shape, shape.num_elements));
  const int num_slices = static_cast<int>(slices.size());

  int64_t slot_bytes = 0;
  for (ElementRange slice : slices)
    slot_bytes = std::max(slot_bytes, exchange.payload_bytes(slice));
  exchange.buffers().reserve(num_ranks * num_slices, slot_bytes);
  auto slot = [&](int source, int slice) {
    const auto bytes =
        static_cast<size_t>(exchange.payload_bytes(slices[static_cast<size_t>(slice)]));
    return exchange.buffers().buffer(source * num_slices + slice).first(bytes);
  };
  auto source_at = [&](int hop) { return (rank - hop - 1 + num_ranks) % num_ranks; };
  auto index = [&](int hop, int slice) { return static_cast<size_t>(hop * num_slices + slice); };

  exchange.enter_hop(0);
  // Every payload has a slot of its own: all receives can be posted at once.
  std::vector<std::unique_ptr<PendingMessage>> receives(index(num_ranks - 1, 0));
  std::vector<std::unique_ptr<PendingMessage>> sends(receives.size());
  for (int hop = 0; hop < num_ranks - 1; ++hop) {
    for (int slice = 0; slice < num_slices; ++slice) {
      receives[index(hop, slice)] = exchange.receive(previous, static_cast<Tag>(index(hop, slice)),
                                                     slot(source_at(hop), slice));
    }
  }
  auto send = [&](int hop, int source, int slice) {
    if (hop >= num_ranks - 1) return;
    sends[index(hop, slice)] =
        exchange.send(next, static_cast<Tag>(index(hop, slice)), slot(source, slice));
  };

  for (int slice = 0; slice < num_slices; ++slice) {
    const MessageLabel label = exchange.label(rank, slice);
    exchange.encode(slices[static_cast<size_t>(slice)], {}, {}, slot(rank, slice), label);
    send(0, rank, slice);
  }
  for (int hop = 0; hop < num_ranks - 1; ++hop) {
    exchange.enter_hop(hop);
    for (int slice = 0; slice < num_slices; ++slice) {
      exchange.wait(receives[index(hop, slice)]);
      send(hop + 1, source_at(hop), slice);
    }
  }
  std::vector<std::span<const std::byte>> payloads(static_cast<size_t>(num_ranks));
  std::vector<MessageLabel> labels(payloads.size());
  for (int slice = 0; slice < num_slices; ++slice) {
    for (int source = 0; source < num_ranks; ++source) {
      payloads[static_cast<size_t>(source)] = slot(source, slice);
      labels[static_cast<size_t>(source)] = exchange.label(source, slice);
    }
    exchange.decode(slices[static_cast<size_t>(slice)], payloads, labels);
  }
  for (auto& message : sends) exchange.wait(message);
}

}  // namespace fastcomm
