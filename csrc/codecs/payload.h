#pragma once
// The header that every payload starts with. docs/wire_format.md is its specification.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/check.h"
#include "core/host_device.h"

namespace fastcomm {

inline constexpr int64_t kHeaderBytes = 32;
// Sections start at multiples of this, so that a GPU can use 16-byte accesses.
inline constexpr int64_t kSectionAlignment = 16;

FASTCOMM_HOST_DEVICE constexpr int64_t align_up(int64_t value, int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

// Which message a payload is: two ranks that disagree are out of step with each other.
struct MessageLabel {
  uint32_t step = 0;     // how many synchronizations came before on this communicator
  uint16_t bucket = 0;   // index of the bucket within the step
  uint16_t segment = 0;  // ring: the segment; gather: the rank that encoded it
  uint32_t slice = 0;    // index of the slice within the segment
};

// What the two ends must agree on besides the label.
struct PayloadFormat {
  uint8_t codec_id = 0;
  uint32_t parameter = 0;  // dense codecs: elements per block; top-k: the number of elements sent
  uint32_t num_elements = 0;
};

// A header as words; the last one is the checksum.
inline constexpr int kHeaderWords = kHeaderBytes / 4;
using HeaderWords = std::array<uint32_t, kHeaderWords>;

// With a checksum of 0.
HeaderWords make_header(int64_t payload_bytes, const MessageLabel& label,
                        const PayloadFormat& format);

// Throws PayloadError, naming the first difference, if `received` is not `expected`, whose checksum
// is that of what was received.
void check_header(const HeaderWords& received, const HeaderWords& expected);

// Fills in the header of `payload`, whose body is complete, with the checksum of header and body.
void seal_payload(std::span<std::byte> payload, const MessageLabel& label,
                  const PayloadFormat& format);

// Checks everything about `payload` against what this rank expects.
// Throws PayloadError, naming the first difference, if anything differs.
void check_payload(std::span<const std::byte> payload, const MessageLabel& label,
                   const PayloadFormat& format);

// The number of elements that an unverified payload claims to hold.
// Throws PayloadError if it is too short to say.
uint32_t payload_num_elements(std::span<const std::byte> payload);

}  // namespace fastcomm
