#pragma once
// Small tables (the pieces of a bucket, lists of payloads) in device memory.
//
// Training asks for the same tables at every step: each is uploaded once and then found by its
// contents, so that a step copies nothing and can be captured in a CUDA graph.

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "core/cuda.h"

namespace fastcomm {

class DeviceTables {
 public:
  // Returns `rows` in device memory, to be used by what is enqueued on `stream` from now on.
  template <class Row>
  const Row* upload(const DeviceAllocate& allocate, cudaStream_t stream,
                    std::span<const Row> rows) {
    return reinterpret_cast<const Row*>(upload_bytes(allocate, stream, std::as_bytes(rows)));
  }

 private:
  // Layouts change when DDP rebuilds its buckets, and callers may come with ever new memory.
  static constexpr size_t kMostTables = 4096;

  const std::byte* upload_bytes(const DeviceAllocate& allocate, cudaStream_t stream,
                                std::span<const std::byte> bytes) {
    std::string key(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const auto found = tables_.find(key);
    if (found != tables_.end()) return found->second.get();
    if (tables_.size() >= kMostTables) {
      FASTCOMM_CUDA_CHECK(cudaStreamSynchronize(stream));  // they may be in use
      tables_.clear();
    }
    const std::shared_ptr<std::byte> table = allocate(static_cast<int64_t>(bytes.size()));
    const auto inserted = tables_.emplace(std::move(key), table).first;
    // From the table's own key, which stays: some systems read it when the stream gets there.
    const cudaError_t error = cudaMemcpyAsync(table.get(), inserted->first.data(), bytes.size(),
                                              cudaMemcpyHostToDevice, stream);
    if (error != cudaSuccess) tables_.erase(inserted);
    FASTCOMM_CUDA_CHECK(error);
    return table.get();
  }

  std::map<std::string, std::shared_ptr<std::byte>> tables_;  // by their bytes
};

}  // namespace fastcomm
