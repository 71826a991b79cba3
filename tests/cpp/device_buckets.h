#pragma once
// A bucket in device memory beside the same one in host memory: what one does, the other must do,
// byte for byte.

#include <memory>
#include <vector>

#include "buckets.h"
#include "codecs/cuda/bucket_codecs.h"
#include "device_memory.h"
#include "doctest.h"

namespace fastcomm::testing {

// Of what the tests encode.
inline constexpr MessageLabel kDeviceLabel{.step = 7, .bucket = 3, .segment = 2, .slice = 11};

inline Bytes bytes_of(const std::vector<float>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

template <class DeviceCodec>
class DeviceTwin {
 public:
  // `misalignment`: the memory starts so many elements after an aligned address.
  DeviceTwin(const BucketOptions& options, const std::vector<float>& gradient,
             const std::vector<float>& residual, int64_t misalignment, CudaWorkspace& workspace,
             const std::vector<float>& velocity = {})
      : host_(options, gradient, residual, velocity),
        has_residual_(!residual.empty()),
        gradient_(to_dtype(options.dtype, gradient),
                  misalignment * static_cast<int64_t>(dtype_bytes(options.dtype))),
        residual_(bytes_of(residual), misalignment * int64_t{sizeof(float)}),
        velocity_(bytes_of(velocity), misalignment * int64_t{sizeof(float)}),
        codec_(options.codecs(),
               {gradient_.data(), options.dtype,
                has_residual_ ? reinterpret_cast<float*>(residual_.data()) : nullptr,
                static_cast<int64_t>(gradient.size()),
                velocity.empty() ? nullptr : reinterpret_cast<float*>(velocity_.data())},
               options.runs, 1, options.rank, workspace) {}

  // Both encode; returns the payload.
  Bytes encode(ElementRange range, const std::vector<Bytes>& received, const MessageLabel& label) {
    const Bytes expected = host_.encode(range, received, label);
    std::vector<Payload> copies(received.begin(), received.end());
    Payload payload(Bytes(expected.size(), std::byte{0x5a}));
    const std::vector<MessageLabel> labels(received.size(), label);
    codec_.encode(range, spans_of(copies), labels, payload.span(), label);
    const Bytes encoded = payload.to_host();
    REQUIRE(encoded == expected);
    check_residuals();
    return encoded;
  }

  // Both decode; the buckets then hold the result.
  void decode(ElementRange range, const std::vector<Bytes>& payloads, const MessageLabel& label) {
    host_.decode(range, payloads, label);
    std::vector<Payload> copies(payloads.begin(), payloads.end());
    const std::vector<MessageLabel> labels(payloads.size(), label);
    codec_.decode(range, spans_of(copies), labels);
    REQUIRE(gradient_.to_host() == host_.memory());
  }

  void check_residuals() {
    if (has_residual_) REQUIRE(residual_.to_host() == bytes_of(host_.residual()));
    REQUIRE(velocity_.to_host() == bytes_of(host_.velocity()));
  }
  DeviceCodec& codec() { return codec_; }
  ElementRange whole() const { return host_.whole(); }
  Bytes result() const { return gradient_.to_host(); }

 private:
  // Where the codec wants its payloads.
  struct HostPayload {
    HostPayload(Bytes contents) : bytes(std::move(contents)) {}  // NOLINT: implicit
    std::span<std::byte> span() { return bytes; }
    Bytes to_host() const { return bytes; }
    Bytes bytes;
  };
  struct DevicePayload {
    DevicePayload(const Bytes& contents) : memory(contents) {}  // NOLINT: implicit
    std::span<std::byte> span() { return memory.span(); }
    Bytes to_host() const { return memory.to_host(); }
    DeviceMemory memory;
  };
  using Payload =
      std::conditional_t<std::is_same_v<DeviceCodec, StagedCodec>, HostPayload, DevicePayload>;
  static std::vector<std::span<const std::byte>> spans_of(std::vector<Payload>& payloads) {
    std::vector<std::span<const std::byte>> spans;
    for (Payload& payload : payloads) spans.push_back(payload.span());
    return spans;
  }

  Bucket host_;
  bool has_residual_;
  DeviceMemory gradient_;
  DeviceMemory residual_;
  DeviceMemory velocity_;
  DeviceCodec codec_;
};

}  // namespace fastcomm::testing
