#pragma once
// Buckets in device memory as Codecs: the payloads of BucketCodec, byte for byte.
//
//   StreamCodec  its payloads are in device memory, too (NCCL). Everything is enqueued on one
//     stream and nothing waits: a payload that is not what its label says sets the workspace's
//     `failed` instead of throwing.
//   StagedCodec  its payloads are in host memory (gloo). Only they cross the bus, in parts, so that
//     the copies of one part overlap the kernels of another; encode() returns when the payload is
//     complete, decode() as soon as the payloads' memory may be used again.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "codecs/bucket_codec.h"
#include "codecs/codec.h"
#include "codecs/cuda/workspace.h"

namespace fastcomm {

// `memory` is device memory; the other arguments are those of BucketCodec.
std::unique_ptr<Codec> make_stream_codec(const CodecSpec& spec, BucketMemory memory,
                                         const std::vector<Run>& runs, float factor, int rank,
                                         CudaWorkspace& workspace);
std::unique_ptr<Codec> make_staged_codec(const CodecSpec& spec, BucketMemory memory,
                                         const std::vector<Run>& runs, float factor, int rank,
                                         CudaWorkspace& workspace);

// What a device found wrong with a payload, in memory that host and device see. All zero: nothing.
struct DeviceFailure {
  uint32_t what;  // 1 + index of the header's field; see payload_failure_text()
  uint32_t received;
  uint32_t expected;
};
// For people to read.
std::string payload_failure_text(const DeviceFailure& failure);

}  // namespace fastcomm
