#pragma once
// Buckets in device memory as Codecs: the payloads of BucketCodec, byte for byte.
//
//   StreamCodec  its payloads are in device memory, too (NCCL). Everything is enqueued on one
//     stream and nothing waits: a payload that is not what its label says sets the workspace's
//     `failed` and `failure` instead of throwing.
//   StagedCodec  its payloads are in host memory (gloo). Only they cross the bus, in parts, so that
//     the copies of one part overlap the kernels of another; encode() returns when the payload is
//     complete, decode() as soon as the payloads' memory may be used again.

#include <memory>
#include <vector>

#include "codecs/bucket_layout.h"
#include "codecs/codec.h"
#include "codecs/cuda/device_bucket.h"
#include "codecs/cuda/workspace.h"

namespace fastcomm {

class DeviceCodec : public Codec {
 public:
  // `memory` is device memory; the other arguments are those of BucketCodec.
  DeviceCodec(const std::vector<CodecSpec>& codecs, BucketMemory memory,
              const std::vector<Run>& runs, float factor, int rank, CudaWorkspace& workspace)
      : bucket_(codecs, memory, runs, factor, rank, workspace), workspace_(workspace) {}

  BucketShape shape() const override { return bucket_.layout().shape(); }
  std::string describe() const override { return bucket_.layout().describe(); }
  int64_t payload_bytes(ElementRange range) const override {
    return bucket_.layout().payload_bytes(range);
  }

 protected:
  DeviceBucket bucket_;
  CudaWorkspace& workspace_;
};

class StreamCodec final : public DeviceCodec {
 public:
  using DeviceCodec::DeviceCodec;
  // For benchmarks of the kernels: without headers and checksums, nothing is checked.
  void leave_unsealed() { is_sealed_ = false; }

  void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
              std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
              const MessageLabel& label) override;
  void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
              std::span<const MessageLabel> labels) override;

 private:
  void check(ElementRange range, std::span<const std::span<const std::byte>> payloads,
             std::span<const MessageLabel> labels);

  bool is_sealed_ = true;
};

class StagedCodec final : public DeviceCodec {
 public:
  using DeviceCodec::DeviceCodec;

  void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
              std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
              const MessageLabel& label) override;
  void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
              std::span<const MessageLabel> labels) override;
};

// Throws PayloadError if `failure`, of a CudaWorkspace, is set.
void throw_if_failed(const DeviceFailure& failure);

}  // namespace fastcomm
