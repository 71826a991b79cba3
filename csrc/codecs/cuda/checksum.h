#pragma once
// Headers of payloads in device memory: written and checked in stream order. All only enqueue.

#include "codecs/cuda/workspace.h"
#include "codecs/payload.h"

namespace fastcomm {

// As seal_payload(). `payload` is aligned to 16 bytes, its size a multiple of 16.
void seal_on_device(CudaWorkspace& workspace, std::byte* payload, int64_t payload_bytes,
                    const MessageLabel& label, const PayloadFormat& format);

// As check_payload(), but what is wrong goes to the workspace's `failed` and `failure`.
void check_on_device(CudaWorkspace& workspace, const std::byte* payload, int64_t payload_bytes,
                     const MessageLabel& label, const PayloadFormat& format);

}  // namespace fastcomm
