#pragma once
// What a schedule needs of the network: point-to-point messages between the ranks of one group.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace fastcomm {

// Identifies a message between two ranks. Messages with the same tag between the same two ranks
// arrive in the order in which they were sent.
using Tag = uint32_t;

// A send or receive under way. Destroying it before wait() gives the message up.
class PendingMessage {
 public:
  virtual ~PendingMessage() = default;
  // Returns when the message's memory may be used again. Throws Error if the message failed.
  virtual void wait() = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Whether a receive may be larger than its message, which then fills only its beginning.
  virtual bool takes_shorter_messages() const = 0;

  // Both return at once; `bytes` must stay valid until the message completes. A receive names the
  // exact size of the message, unless the transport takes shorter ones.
  virtual std::unique_ptr<PendingMessage> send(int peer, Tag tag,
                                               std::span<const std::byte> bytes) = 0;
  virtual std::unique_ptr<PendingMessage> receive(int peer, Tag tag,
                                                  std::span<std::byte> bytes) = 0;

  // Says that nothing is sent to `peer` at this place in the order of messages. Some transports
  // pair every send with a receive (paired_transport.h): for them the ranks of a schedule send at
  // the same places, or skip them, and post the receive that is paired with a send before.
  virtual void skip_send(int /*peer*/, Tag /*tag*/) {}
};

}  // namespace fastcomm
