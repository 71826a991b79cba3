#pragma once
// Memory of a GPU, or of its emulation on the host (FASTCOMM_CUDA_EMULATION), where it ends at an
// inaccessible page: what reads far past its end crashes.

#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <span>
#include <vector>

#include "codecs/cuda/workspace.h"
#include "values.h"

namespace fastcomm::testing {

#if FASTCOMM_CUDA_EMULATION

inline std::shared_ptr<std::byte> allocate_device(int64_t num_bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto bytes = static_cast<size_t>(num_bytes);
  const size_t mapped = (bytes + page - 1) / page * page + page;
  auto* mapping = static_cast<std::byte*>(
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(mapping + mapped - page, page, PROT_NONE);
  // Aligned as payloads and tensors are: up to 15 bytes before the page stay accessible.
  std::byte* const begin = mapping + (mapped - page - bytes) / 16 * 16;
  std::memset(begin, 0xa5, bytes);
  return {begin, [mapping, mapped](std::byte*) { munmap(mapping, mapped); }};
}

#else

inline std::shared_ptr<std::byte> allocate_device(int64_t num_bytes) {
  void* memory = nullptr;
  FASTCOMM_CUDA_CHECK(cudaMalloc(&memory, static_cast<size_t>(num_bytes > 0 ? num_bytes : 1)));
  FASTCOMM_CUDA_CHECK(cudaMemset(memory, 0xa5, static_cast<size_t>(num_bytes)));
  return {static_cast<std::byte*>(memory), [](std::byte* begin) { cudaFree(begin); }};
}

#endif

class DeviceMemory {
 public:
  // Starts at `misalignment` bytes after a multiple of 16.
  explicit DeviceMemory(int64_t num_bytes, int64_t misalignment = 0)
      : memory_(allocate_device(num_bytes + misalignment)),
        data_(memory_.get() + misalignment),
        bytes_(static_cast<size_t>(num_bytes)) {}
  explicit DeviceMemory(std::span<const std::byte> contents, int64_t misalignment = 0)
      : DeviceMemory(static_cast<int64_t>(contents.size()), misalignment) {
    FASTCOMM_CUDA_CHECK(
        cudaMemcpyAsync(data_, contents.data(), bytes_, cudaMemcpyHostToDevice, nullptr));
    FASTCOMM_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  }

  std::byte* data() const { return data_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }
  Bytes to_host() const {
    Bytes bytes(bytes_);
    FASTCOMM_CUDA_CHECK(
        cudaMemcpyAsync(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost, nullptr));
    FASTCOMM_CUDA_CHECK(cudaStreamSynchronize(nullptr));
    return bytes;
  }

 private:
  std::shared_ptr<std::byte> memory_;
  std::byte* data_;
  size_t bytes_;
};

// A workspace with what StreamCodec needs to report failures.
class DeviceWorkspace {
 public:
  DeviceWorkspace() : failed_(16) {
    FASTCOMM_CUDA_CHECK(cudaMemsetAsync(failed_.data(), 0, 16, nullptr));
    void* failure = nullptr;
    FASTCOMM_CUDA_CHECK(cudaHostAlloc(&failure, sizeof(DeviceFailure), cudaHostAllocDefault));
    failure_ = static_cast<DeviceFailure*>(failure);
    *failure_ = {};
    workspace_.allocate = allocate_device;
    workspace_.failed = reinterpret_cast<uint32_t*>(failed_.data());
    workspace_.failure = failure_;
  }
  ~DeviceWorkspace() { cudaFreeHost(failure_); }
  DeviceWorkspace(const DeviceWorkspace&) = delete;

  CudaWorkspace& get() { return workspace_; }
  const DeviceFailure& failure() const {
    cudaStreamSynchronize(nullptr);
    return *failure_;
  }

 private:
  DeviceMemory failed_;
  DeviceFailure* failure_;
  CudaWorkspace workspace_;
};

}  // namespace fastcomm::testing
