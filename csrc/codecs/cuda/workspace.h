#pragma once
// What the codecs keep on a device from call to call. One for each stream.

#include <cstdint>
#include <memory>

#include "codecs/cuda/staging.h"
#include "codecs/cuda/tables.h"
#include "codecs/cuda/topk.h"
#include "codecs/payload.h"
#include "core/cuda.h"

namespace fastcomm {

// The first payload that was not what its label says, in memory that host and device see.
struct DeviceFailure {
  uint32_t is_set;
  uint32_t received[kHeaderWords];
  uint32_t expected[kHeaderWords];
};

// Of checksum.cu; all zero between launches.
struct ChecksumState {
  uint32_t remainder;
  uint32_t num_finished;  // blocks
};

struct CudaWorkspace {
  cudaStream_t stream = nullptr;
  DeviceAllocate allocate;
  // Both nullptr: payloads are checked elsewhere. Else both zero at first; `failed` is a word in
  // device memory. Once it is set, nothing but NaN is encoded and decoded, so that no rank goes on
  // with a wrong sum.
  uint32_t* failed = nullptr;
  DeviceFailure* failure = nullptr;

  DeviceTables tables;
  CudaTopK topk;
  ZeroedOnDevice<ChecksumState> checksum_state;
  // Where payloads come from the host and go there.
  DeviceBuffer payloads;
  std::unique_ptr<StagingStreams> staging;
};

}  // namespace fastcomm
