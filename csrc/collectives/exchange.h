#pragma once
// What every schedule works with: one bucket's codec, the network, memory, and a record of what
// was done. A schedule is a function that takes an Exchange and leaves the result in the bucket.

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "codecs/codec.h"
#include "collectives/transport.h"

namespace fastcomm {

// What one rank did, summed over exchanges.
struct Measurements {
  int64_t wire_bytes = 0;  // payload bytes sent by this rank, headers included
  double seconds_encode = 0;
  double seconds_decode = 0;
  double seconds_send = 0;  // handing messages to the transport
  double seconds_wait = 0;  // blocked on the network
};

// One thing that a lane did.
struct TraceEvent {
  const char* name;  // encode, decode, send, wait
  std::chrono::steady_clock::time_point begin;
  std::chrono::steady_clock::time_point end;
  int64_t bytes;  // of the payload; of a wait: 0
};

// Returns memory, aligned for payloads, that is given back with the last reference.
using AllocatePayloads = std::function<std::shared_ptr<std::byte>(int64_t bytes)>;

// Payload memory, reused by every exchange of a lane.
class PayloadBuffers {
 public:
  PayloadBuffers();

  // From now on, memory of another kind: a device's, say. Spans handed out before are invalid.
  void take_memory_from(AllocatePayloads allocate);

  // `num_buffers` spans of `bytes` each. Spans handed out before are invalid afterwards.
  void reserve(int num_buffers, int64_t bytes);
  std::span<std::byte> buffer(int index) {
    return {memory_.get() + index * stride_, static_cast<size_t>(bytes_)};
  }

 private:
  AllocatePayloads allocate_;
  std::shared_ptr<std::byte> memory_;
  int64_t capacity_ = 0;
  int64_t stride_ = 0;
  int64_t bytes_ = 0;
  int num_small_ = 0;  // reservations in a row that needed less than half of the memory
};

// Which exchange this is: the same on every rank.
struct ExchangeId {
  uint32_t step = 0;
  uint16_t bucket = 0;
};

// The bucket index of what ranks tell each other before data flows: no bucket's, and not measured.
constexpr uint16_t kSettings = 0xFFFD;

// "step 41, bucket 0"
std::string describe(ExchangeId id);
// "rank 1, step 41, bucket 0"
std::string describe_place(int rank, ExchangeId id);

// The exception that is being handled, as an Error that says first where it happened.
std::exception_ptr current_error_at(const std::string& place);

class Exchange {
 public:
  Exchange(Codec& codec, Transport& transport, PayloadBuffers& buffers, Measurements& measurements,
           ExchangeId id, std::vector<TraceEvent>* trace = nullptr)
      : codec_(codec),
        transport_(transport),
        buffers_(buffers),
        measurements_(measurements),
        id_(id),
        trace_(trace) {}

  int rank() const { return transport_.rank(); }
  int world_size() const { return transport_.world_size(); }
  BucketShape shape() const { return codec_.shape(); }
  int64_t payload_bytes(ElementRange range) const { return codec_.payload_bytes(range); }
  PayloadBuffers& buffers() { return buffers_; }
  MessageLabel label(int segment, int64_t slice) const;
  // What must be the same on every rank, for people to read.
  std::string describe() const;
  // Which hop of the schedule this rank is at. Until the first one it is in the opening.
  void enter_hop(int hop) { hop_ = hop; }
  // Where this rank is, for people to read: rank, step, bucket and hop.
  std::string place() const;

  // Codec and Transport calls, measured.
  void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
              std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
              const MessageLabel& label);
  void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
              std::span<const MessageLabel> labels);
  std::unique_ptr<PendingMessage> send(int peer, Tag tag, std::span<const std::byte> bytes);
  void skip_send(int peer, Tag tag) { transport_.skip_send(peer, tag); }
  std::unique_ptr<PendingMessage> receive(int peer, Tag tag, std::span<std::byte> bytes);
  // Waits for a message, if there is one, and forgets it.
  void wait(std::unique_ptr<PendingMessage>& message);

 private:
  Codec& codec_;
  Transport& transport_;
  PayloadBuffers& buffers_;
  Measurements& measurements_;
  ExchangeId id_;
  int hop_ = -1;
  std::vector<TraceEvent>* trace_;  // nullptr: nobody asked
};

}  // namespace fastcomm
