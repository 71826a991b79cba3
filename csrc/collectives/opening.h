#pragma once
// The first message of every exchange.
//
// The size of every message follows from the arguments of the call, so that ranks that were called
// with different arguments expect messages of different sizes; some transports end the process
// when a message does not fit (gloo does). So each exchange begins with an *opening*: a *record* of
// a fixed size that says what its sender is about to do, and behind it, if the bucket is small, the
// sender's whole payload. Ranks compare records: a difference becomes an error that shows both
// sides.
//
// An exchange of a small bucket is over with its openings: every rank has every payload, and sums
// them in rank order, as the gather schedule does. That is one message's latency where a ring has
// 2 (N-1). Others then run their schedule.
//
// The receives of the next exchange's openings are posted before this one ends, where the transport
// lets them wait: a message that finds its receive waiting is not delayed by telling the sender to
// go on.

#include <memory>
#include <span>
#include <vector>

#include "collectives/exchange.h"
#include "collectives/schedules.h"

namespace fastcomm {

inline constexpr int64_t kRecordBytes = 96;
// The largest payload that travels in openings. Each rank sends it to all others, (N-1) times; a
// ring would send 2 (N-1) / N of it. The difference is bounded by what 1 Gbit/s carries in about
// the latencies that it saves; on slower wires, where it costs more, it still is a small time.
int64_t largest_opening_payload(int world_size);

// The openings' tag: above those of any schedule.
inline constexpr Tag kOpeningTag = (Tag{1} << 24) - 1;

// Runs one exchange after another over a transport.
class Openings {
 public:
  explicit Openings(Transport& transport);

  // Synchronizes the bucket of `exchange`, which is over this object's transport.
  // Throws MismatchError if another rank is about to do something else; what the residual of a
  // small bucket holds is undefined then. A rank that differs from a neighbour always learns it;
  // the others wait for ranks that do not go on, until they are told.
  void run(Exchange& exchange, const Schedule& schedule);

 private:
  struct Peer {
    std::unique_ptr<std::byte[]> memory;  // of two openings: this exchange's and the next one's
    std::unique_ptr<PendingMessage> receive;
  };

  bool carries_payload(const Exchange& exchange, const Schedule& schedule) const;
  std::span<std::byte> received(int rank);
  void post_receive(int rank);
  // Posts the receives of the next exchange's openings.
  void post_ahead(const std::vector<int>& ranks);
  // Sends `mine` to these ranks and receives theirs, in this order: a rank that does something else
  // may have sent an opening to its neighbours only, so that they come first.
  void exchange_openings(Exchange& exchange, std::span<const std::byte> mine,
                         const std::vector<int>& ranks);
  // The bytes of an opening: more than a record only where the transport has them in one message.
  int64_t opening_bytes() const;

  Transport& transport_;
  std::vector<Peer> peers_;            // by rank; this rank's own has no memory
  std::unique_ptr<std::byte[]> sent_;  // this rank's opening
  int side_ = 0;                       // which half of their memory the posted receives use
};

}  // namespace fastcomm
