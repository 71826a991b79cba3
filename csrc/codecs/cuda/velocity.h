#pragma once
// Momentum correction on a GPU: the bits of velocity/velocity.h.

#include "codecs/bucket.h"
#include "codecs/velocity/element.h"
#include "core/cuda.h"

namespace fastcomm {

// All memory of the bucket is on the device. Only enqueues, on `stream`.
void enqueue_accumulate_velocity(const BucketMemory& memory, const Momentum& momentum,
                                 cudaStream_t stream);

}  // namespace fastcomm
