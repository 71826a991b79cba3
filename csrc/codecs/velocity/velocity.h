#pragma once
// The momentum of a bucket, corrected before it is encoded: velocity/element.h says how.

#include "codecs/bucket.h"
#include "codecs/velocity/element.h"
#include "core/thread_pool.h"

namespace fastcomm {

// Throws Error unless the bucket has a velocity and a residual.
void check_velocity(const BucketMemory& memory);

// One pass over the bucket's gradient, velocity and residual, in host memory. Results do not depend
// on the threads; nullptr: only the caller's.
void accumulate_velocity(const BucketMemory& memory, const Momentum& momentum, ThreadPool* threads);

}  // namespace fastcomm
