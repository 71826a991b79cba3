#pragma once
// What the codecs keep on a device from call to call. One for each stream.

#include <cstdint>

#include "codecs/cuda/tables.h"
#include "codecs/cuda/topk.h"
#include "core/cuda.h"

namespace fastcomm {

struct CudaWorkspace {
  cudaStream_t stream = nullptr;
  DeviceAllocate allocate;
  // Non-zero once a payload was not what it should be: from then on nothing but NaN is encoded and
  // decoded, so that no rank goes on with a wrong sum. nullptr: payloads are checked elsewhere.
  const uint32_t* failed = nullptr;
  DeviceTables tables;
  CudaTopK topk;
  DeviceBuffer payloads;  // staging, where payloads come from and go to the host
};

}  // namespace fastcomm
