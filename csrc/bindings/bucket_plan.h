#pragma once
// How a bucket is synchronized: the same on every rank.

#include <memory>
#include <vector>

#include "codecs/bucket_codec.h"
#include "collectives/schedules.h"

namespace fastcomm {

struct BucketPlan {
  std::vector<CodecSpec> codecs;
  std::vector<Run> runs;
  const Schedule* schedule;
  std::shared_ptr<ThreadPool> threads;  // that help the CPU to encode and decode; may be null
};

}  // namespace fastcomm
