// Compiled where CUDA is; no_cuda_codecs.cpp elsewhere.

#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>

#include "bindings/device_codecs.h"
#include "codecs/cuda/bucket_codecs.h"
#include "codecs/cuda/velocity.h"
#include "core/cuda.h"
#include "core/pages.h"

namespace fastcomm {
namespace {

// Memory of torch's allocator, so that it counts as torch's, for what is enqueued on `stream`.
std::shared_ptr<std::byte> allocate_for(const c10::cuda::CUDAStream& stream, int64_t bytes) {
  const c10::cuda::CUDAStreamGuard guard(stream);
  auto tensor = std::make_shared<at::Tensor>(
      at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(stream.device())));
  return {tensor, static_cast<std::byte*>(tensor->data_ptr())};
}

// A word on the device, which kernels look at, and the details where the host can look at them
// without asking the device.
class CudaFailureRecord final : public FailureRecord {
 public:
  explicit CudaFailureRecord(c10::Device device)
      : word_(allocate_for(c10::cuda::getCurrentCUDAStream(device.index()), sizeof(uint32_t))) {
    const c10::cuda::CUDAGuard guard(device);
    void* details = nullptr;
    FASTCOMM_CUDA_CHECK(cudaHostAlloc(&details, sizeof(DeviceFailure),
                                      cudaHostAllocMapped | cudaHostAllocPortable));
    details_ = {new (details) DeviceFailure{}, [](DeviceFailure* memory) { cudaFreeHost(memory); }};
    void* visible = nullptr;
    FASTCOMM_CUDA_CHECK(cudaHostGetDevicePointer(&visible, details, 0));
    details_on_device_ = static_cast<DeviceFailure*>(visible);
    FASTCOMM_CUDA_CHECK(cudaMemset(word_.get(), 0, sizeof(uint32_t)));
    // Whichever streams come to use it.
    FASTCOMM_CUDA_CHECK(cudaDeviceSynchronize());
  }

  void check() const override {
    // A device writes it, behind the compiler's back.
    if (std::atomic_ref(details_->is_set).load(std::memory_order_acquire) == 0) return;
    throw_if_failed(*details_);
  }

  uint32_t* word() const { return reinterpret_cast<uint32_t*>(word_.get()); }
  DeviceFailure* details_on_device() const { return details_on_device_; }

 private:
  std::shared_ptr<std::byte> word_;
  std::shared_ptr<DeviceFailure> details_;
  DeviceFailure* details_on_device_ = nullptr;
};

class CudaCodecs final : public DeviceCodecs {
 public:
  CudaCodecs(c10::Stream stream, std::shared_ptr<FailureRecord> record)
      : stream_(c10::cuda::CUDAStream(stream)), record_(std::move(record)) {
    workspace_.stream = stream_.stream();
    workspace_.allocate = [this](int64_t bytes) { return allocate(bytes); };
    if (record_ == nullptr) return;
    const auto& failures = dynamic_cast<const CudaFailureRecord&>(*record_);
    workspace_.failed = failures.word();
    workspace_.failure = failures.details_on_device();
  }

  c10::Stream stream() const override { return stream_.unwrap(); }
  void keep_memory_if_capturing() override {
    if (keeps_memory_ || !is_capturing(stream_)) return;
    keeps_memory_ = true;
    for (const auto& memory : allocated_) {
      if (auto in_use = memory.lock()) kept_.push_back(std::move(in_use));
    }
  }
  void synchronize() const override { stream_.synchronize(); }
  bool is_done() const override { return stream_.query(); }
  std::shared_ptr<std::byte> allocate(int64_t bytes) override {
    std::shared_ptr<std::byte> memory = allocate_for(stream_, bytes);
    if (keeps_memory_) {
      kept_.push_back(memory);
    } else {
      std::erase_if(allocated_, [](const auto& earlier) { return earlier.expired(); });
      allocated_.push_back(memory);
    }
    return memory;
  }

  void accumulate_velocity(const BucketMemory& memory, const Momentum& momentum) override {
    enqueue_accumulate_velocity(memory, momentum, stream_.stream());
  }

  std::unique_ptr<Codec> stream_codec(const std::vector<CodecSpec>& codecs, BucketMemory memory,
                                      const std::vector<Run>& runs, float factor, int rank,
                                      bool is_sealed) override {
    auto codec = std::make_unique<StreamCodec>(codecs, memory, runs, factor, rank, workspace_);
    if (!is_sealed) codec->leave_unsealed();
    return codec;
  }
  std::unique_ptr<Codec> staged_codec(const std::vector<CodecSpec>& codecs, BucketMemory memory,
                                      const std::vector<Run>& runs, float factor,
                                      int rank) override {
    return std::make_unique<StagedCodec>(codecs, memory, runs, factor, rank, workspace_);
  }

 private:
  const c10::cuda::CUDAStream stream_;
  std::shared_ptr<FailureRecord> record_;
  // Of all that was allocated; and what is kept, once a graph uses it.
  std::vector<std::weak_ptr<std::byte>> allocated_;
  bool keeps_memory_ = false;
  std::vector<std::shared_ptr<std::byte>> kept_;
  CudaWorkspace workspace_;
};

}  // namespace

const bool has_cuda = true;

std::shared_ptr<FailureRecord> make_failure_record(c10::Device device) {
  return std::make_shared<CudaFailureRecord>(device);
}

std::unique_ptr<DeviceCodecs> make_device_codecs(c10::Stream stream,
                                                 std::shared_ptr<FailureRecord> record) {
  return std::make_unique<CudaCodecs>(stream, std::move(record));
}

bool is_capturing(c10::Stream stream) {
  const c10::cuda::CUDAStreamGuard guard(stream);
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

std::shared_ptr<std::byte> allocate_pinned(int64_t bytes) {
  struct Pinned {
    explicit Pinned(int64_t bytes) : pages(bytes) {
      FASTCOMM_CUDA_CHECK(
          cudaHostRegister(pages.data(), static_cast<size_t>(bytes), cudaHostRegisterPortable));
    }
    ~Pinned() { cudaHostUnregister(pages.data()); }
    Pages pages;
  };
  if (bytes == 0) return nullptr;
  auto pinned = std::make_shared<Pinned>(bytes);
  return {pinned, pinned->pages.data()};
}

}  // namespace fastcomm
