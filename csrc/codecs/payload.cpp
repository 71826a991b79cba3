#include "codecs/payload.h"

#include <bit>
#include <cstring>
#include <limits>

#include "core/crc32c.h"

namespace fastcomm {
namespace {

constexpr uint16_t kMagic = 0x4346;  // "FC"
constexpr uint8_t kVersion = 1;

struct Header {
  uint16_t magic;
  uint8_t version;
  uint8_t codec_id;
  uint32_t num_elements;
  uint32_t step;
  uint16_t bucket;
  uint16_t segment;
  uint32_t slice;
  uint32_t parameter;
  uint32_t payload_bytes;
  uint32_t checksum;  // CRC32C of the header before this field, then of the body
};
static_assert(sizeof(Header) == kHeaderBytes);
constexpr size_t kChecksumOffset = offsetof(Header, checksum);

uint32_t checksum_of(std::span<const std::byte> payload) {
  const uint32_t crc = crc32c(0, payload.first(kChecksumOffset));
  return crc32c(crc, payload.subspan(sizeof(Header)));
}

Header read_header(std::span<const std::byte> payload) {
  if (payload.size() < sizeof(Header)) {
    FASTCOMM_THROW(PayloadError, "received payload has " << payload.size()
                                                         << " bytes, less than its header of "
                                                         << sizeof(Header) << ": it is truncated");
  }
  Header header;
  std::memcpy(&header, payload.data(), sizeof header);
  return header;
}

// Adds what the difference means to the bare numbers of a mismatch.
void require_equal(const char* what, uint64_t received, uint64_t expected, const char* meaning) {
  if (received == expected) return;
  FASTCOMM_THROW(PayloadError, "received payload has " << what << " " << received
                                                       << ", this rank expects " << expected << ": "
                                                       << meaning);
}

}  // namespace

HeaderWords make_header(int64_t payload_bytes, const MessageLabel& label,
                        const PayloadFormat& format) {
  FASTCOMM_CHECK(
      payload_bytes <= std::numeric_limits<uint32_t>::max(),
      "a payload of " << payload_bytes << " bytes is too large for its header: cut the tensor");
  Header header{};
  header.magic = kMagic;
  header.version = kVersion;
  header.codec_id = format.codec_id;
  header.num_elements = format.num_elements;
  header.step = label.step;
  header.bucket = label.bucket;
  header.segment = label.segment;
  header.slice = label.slice;
  header.parameter = format.parameter;
  header.payload_bytes = static_cast<uint32_t>(payload_bytes);
  return std::bit_cast<HeaderWords>(header);
}

void seal_payload(std::span<std::byte> payload, const MessageLabel& label,
                  const PayloadFormat& format) {
  HeaderWords header = make_header(static_cast<int64_t>(payload.size()), label, format);
  std::memcpy(payload.data(), header.data(), kChecksumOffset);
  header.back() = checksum_of(payload);
  std::memcpy(payload.data(), header.data(), sizeof header);
}

uint32_t payload_num_elements(std::span<const std::byte> payload) {
  return read_header(payload).num_elements;
}

void check_header(const HeaderWords& received_words, const HeaderWords& expected_words) {
  const auto received = std::bit_cast<Header>(received_words);
  const auto expected = std::bit_cast<Header>(expected_words);
  require_equal("magic number", received.magic, kMagic, "it is not a fastcomm payload");
  require_equal("wire version", received.version, kVersion,
                "install the same fastcomm version on every rank");
  require_equal("size in bytes", received.payload_bytes, expected.payload_bytes,
                "it is truncated, or the ranks call with different tensor sizes");
  require_equal("checksum", expected.checksum, received.checksum,
                "it was damaged on the way; check the network and memory of this host");
  require_equal("codec id", received.codec_id, expected.codec_id,
                "use the same codec on every rank");
  require_equal("number of elements", received.num_elements, expected.num_elements,
                "call with the same tensor size on every rank");
  require_equal("codec parameter", received.parameter, expected.parameter,
                "use the same codec parameters on every rank");
  require_equal("step", received.step, expected.step,
                "the ranks are out of step; call every synchronization on every rank");
  require_equal("bucket", received.bucket, expected.bucket,
                "the ranks are out of step; build the same model on every rank");
  require_equal("segment", received.segment, expected.segment,
                "use the same algorithm on every rank");
  require_equal("slice", received.slice, expected.slice, "messages were repeated or reordered");
}

void check_payload(std::span<const std::byte> payload, const MessageLabel& label,
                   const PayloadFormat& format) {
  const Header received = read_header(payload);
  HeaderWords expected = make_header(static_cast<int64_t>(payload.size()), label, format);
  expected.back() = checksum_of(payload);
  check_header(std::bit_cast<HeaderWords>(received), expected);
}

}  // namespace fastcomm
