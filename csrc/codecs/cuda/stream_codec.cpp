#include <algorithm>

#include "codecs/cuda/bucket_codecs.h"
#include "codecs/cuda/checksum.h"

namespace fastcomm {
namespace {

std::vector<const std::byte*> pointers_of(std::span<const std::span<const std::byte>> payloads) {
  std::vector<const std::byte*> pointers;
  for (const auto& payload : payloads) pointers.push_back(payload.data());
  return pointers;
}

}  // namespace

void StreamCodec::check(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                        std::span<const MessageLabel> labels) {
  const int64_t bytes = payload_bytes(range);
  const PayloadFormat format = bucket_.layout().format(range);
  for (size_t i = 0; i < payloads.size(); ++i) {
    FASTCOMM_CHECK(static_cast<int64_t>(payloads[i].size()) == bytes,
                   "a payload has " << payloads[i].size() << " bytes, not " << bytes);
    if (is_sealed_) check_on_device(workspace_, payloads[i].data(), bytes, labels[i], format);
  }
}

void StreamCodec::encode(ElementRange range, std::span<const std::span<const std::byte>> received,
                         std::span<const MessageLabel> received_labels,
                         std::span<std::byte> payload, const MessageLabel& label) {
  check(range, received, received_labels);
  bucket_.encode(range, pointers_of(received), payload.data(), label);
  if (is_sealed_) {
    seal_on_device(workspace_, payload.data(), payload_bytes(range), label,
                   bucket_.layout().format(range));
  }
}

void StreamCodec::decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                         std::span<const MessageLabel> labels) {
  check(range, payloads, labels);
  bucket_.decode(range, pointers_of(payloads));
}

void throw_if_failed(const DeviceFailure& failure) {
  if (failure.is_set == 0) return;
  HeaderWords received;
  HeaderWords expected;
  std::ranges::copy(failure.received, received.begin());
  std::ranges::copy(failure.expected, expected.begin());
  check_header(received, expected);
}

}  // namespace fastcomm
