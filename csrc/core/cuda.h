#pragma once
// What host code needs of CUDA's runtime: checked calls, launches, and memory that grows.
// Only files that are compiled where CUDA is (FASTCOMM_CUDA) include this.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <tuple>

#include "core/check.h"

#define FASTCOMM_CUDA_CHECK(call)                                                \
  do {                                                                           \
    const cudaError_t fastcomm_error = (call);                                   \
    if (fastcomm_error != cudaSuccess) {                                         \
      FASTCOMM_FAIL(#call << " failed: " << cudaGetErrorString(fastcomm_error)); \
    }                                                                            \
  } while (false)

namespace fastcomm {

// Enqueues kernel(arguments...) with blocks of `num_threads` threads.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t num_blocks, int num_threads, cudaStream_t stream,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim.x = static_cast<unsigned>(num_blocks);
  config.blockDim.x = static_cast<unsigned>(num_threads);
  config.stream = stream;
  FASTCOMM_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// As many blocks as the current device runs at the same time: for kernels that walk their work.
// The driver is asked once for each kernel and device, not at every launch.
template <class Kernel>
int64_t num_resident_blocks(Kernel kernel, int num_threads) {
  int device = 0;
  FASTCOMM_CUDA_CHECK(cudaGetDevice(&device));
  thread_local std::map<std::tuple<int, Kernel, int>, int64_t> known;
  int64_t& num_blocks = known[{device, kernel, num_threads}];
  if (num_blocks == 0) {
    int num_multiprocessors = 0;
    int blocks = 0;
    FASTCOMM_CUDA_CHECK(
        cudaDeviceGetAttribute(&num_multiprocessors, cudaDevAttrMultiProcessorCount, device));
    FASTCOMM_CUDA_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, num_threads, 0));
    num_blocks = int64_t{num_multiprocessors} * (blocks > 0 ? blocks : 1);
  }
  return num_blocks;
}

// Returns device memory (aligned to 256 bytes) that is given back with the last reference.
using DeviceAllocate = std::function<std::shared_ptr<std::byte>(int64_t bytes)>;

// Device memory that is kept from call to call and only ever grows, so that a step allocates
// nothing. What it held is lost when it grows.
class DeviceBuffer {
 public:
  std::byte* reserve(const DeviceAllocate& allocate, int64_t bytes) {
    if (bytes > bytes_) {
      memory_ = nullptr;
      bytes_ = 0;  // should there not be as much
      memory_ = allocate(bytes);
      bytes_ = bytes;
    }
    return memory_.get();
  }
  template <class T>
  T* reserve_array(const DeviceAllocate& allocate, int64_t count) {
    return reinterpret_cast<T*>(reserve(allocate, count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  std::shared_ptr<std::byte> memory_;
  int64_t bytes_ = 0;
};

// An object in device memory, of zeros when it is first asked for.
template <class T>
class ZeroedOnDevice {
 public:
  T* get(const DeviceAllocate& allocate, cudaStream_t stream) {
    T* const object = memory_.reserve_array<T>(allocate, 1);
    if (!is_zeroed_) FASTCOMM_CUDA_CHECK(cudaMemsetAsync(object, 0, sizeof(T), stream));
    is_zeroed_ = true;
    return object;
  }

 private:
  DeviceBuffer memory_;
  bool is_zeroed_ = false;
};

}  // namespace fastcomm
