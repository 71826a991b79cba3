#pragma once
// Copies between host and device that overlap kernels: two streams of their own, one for each
// direction of the bus.

#include <array>

#include "core/cuda.h"

namespace fastcomm {

class CudaEvent {
 public:
  explicit CudaEvent(unsigned flags = cudaEventDisableTiming) {
    FASTCOMM_CUDA_CHECK(cudaEventCreateWithFlags(&event_, flags));
  }
  ~CudaEvent() { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;

  // `later` goes on only after what `earlier` was asked to do so far.
  void order(cudaStream_t earlier, cudaStream_t later) {
    FASTCOMM_CUDA_CHECK(cudaEventRecord(event_, earlier));
    FASTCOMM_CUDA_CHECK(cudaStreamWaitEvent(later, event_, 0));
  }
  // Blocks this thread until `stream` has done what it was asked to so far.
  void wait_for(cudaStream_t stream) {
    FASTCOMM_CUDA_CHECK(cudaEventRecord(event_, stream));
    FASTCOMM_CUDA_CHECK(cudaEventSynchronize(event_));
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaStream {
 public:
  CudaStream() { FASTCOMM_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~CudaStream() { cudaStreamDestroy(stream_); }
  CudaStream(const CudaStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

struct StagingStreams {
  CudaStream to_device;
  CudaStream to_host;
  CudaEvent event;  // an event may be recorded again once it was waited for in stream order
  // The waiting thread sleeps: the processor has other ranks and the network to serve.
  CudaEvent complete{cudaEventDisableTiming | cudaEventBlockingSync};
};

}  // namespace fastcomm
