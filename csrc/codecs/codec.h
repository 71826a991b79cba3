#pragma once
// What a schedule needs of a codec: one bucket, on one rank, that can be encoded and decoded in
// ranges of elements. Schedules know nothing else of codecs, dtypes or memory.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "codecs/payload.h"

namespace fastcomm {

struct ElementRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool empty() const { return begin == end; }
};

// How a bucket may be cut.
struct BucketShape {
  int64_t num_elements;
  int64_t alignment;  // segments and slices start at multiples of this
  // Good sizes of a slice, multiples of the alignment: below the first, what each message costs by
  // itself counts; above the second, larger ones gain nothing.
  int64_t smallest_slice;
  int64_t largest_slice;
};

class Codec {
 public:
  virtual ~Codec() = default;

  virtual BucketShape shape() const = 0;

  // What must be the same on every rank, for people to read: at most about 60 characters.
  virtual std::string describe() const = 0;

  // Size of the payload of `range`: the same on every rank, header included.
  virtual int64_t payload_bytes(ElementRange range) const = 0;

  // value = gradient + residual + the sum of decode(received); payload = encode(value);
  // residual = value - decode(payload). `received` are payloads of the same range from other ranks,
  // or none; they are labelled `received_labels`.
  // Throws PayloadError if one is not what its label says.
  virtual void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
                      std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
                      const MessageLabel& label) = 0;

  // The result of `range` = the sum of the payloads, in this order (times the codec's factor).
  // Throws PayloadError if a payload is not what its label says.
  virtual void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                      std::span<const MessageLabel> labels) = 0;
};

}  // namespace fastcomm
