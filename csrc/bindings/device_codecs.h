#pragma once
// Codecs of buckets on a GPU, for code that knows torch's streams and nothing of CUDA.
// cuda_codecs.cpp; where fastcomm is built for the CPU only, no_cuda_codecs.cpp.

#include <ATen/ATen.h>
#include <c10/core/Stream.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "codecs/bucket_codec.h"
#include "codecs/velocity/velocity.h"

namespace fastcomm {

extern const bool has_cuda;

// What a device found wrong with the payloads of stream codecs. Once there is something, none of
// the codecs that share a record goes on with a sum: they give NaN.
class FailureRecord {
 public:
  virtual ~FailureRecord() = default;
  // Throws PayloadError if something was found so far. Does not wait for the device.
  virtual void check() const = 0;
};

// What codecs keep on a device from call to call, for one stream.
class DeviceCodecs {
 public:
  virtual ~DeviceCodecs() = default;

  virtual c10::Stream stream() const = 0;
  // Keeps all memory, what is replaced by more included, if the stream records a CUDA graph at the
  // moment: the graph uses its addresses whenever it is replayed.
  virtual void keep_memory_if_capturing() = 0;
  // Waits until what was enqueued on the stream is done; is_done() says whether it is.
  virtual void synchronize() const = 0;
  virtual bool is_done() const = 0;
  // Device memory of the stream: what is enqueued there may use it.
  virtual std::shared_ptr<std::byte> allocate(int64_t bytes) = 0;

  // codecs/cuda/velocity.h, on the stream.
  virtual void accumulate_velocity(const BucketMemory& memory, const Momentum& momentum) = 0;

  // codecs/cuda/bucket_codecs.h. The bucket is in device memory, used on the stream; the payloads
  // are in device memory (stream codec) or in host memory (staged codec). Not `is_sealed`, in
  // benchmarks of the kernels: without headers and checksums.
  virtual std::unique_ptr<Codec> stream_codec(const std::vector<CodecSpec>& codecs,
                                              BucketMemory memory, const std::vector<Run>& runs,
                                              float factor, int rank, bool is_sealed = true) = 0;
  virtual std::unique_ptr<Codec> staged_codec(const std::vector<CodecSpec>& codecs,
                                              BucketMemory memory, const std::vector<Run>& runs,
                                              float factor, int rank) = 0;
};

// All throw Error where fastcomm is built for the CPU only.
std::shared_ptr<FailureRecord> make_failure_record(c10::Device device);
// `record`: nullptr if there will be staged codecs only, which throw what they find.
std::unique_ptr<DeviceCodecs> make_device_codecs(c10::Stream stream,
                                                 std::shared_ptr<FailureRecord> record);
// Whether a stream records a CUDA graph at the moment.
bool is_capturing(c10::Stream stream);
// Host memory to and from which devices copy fastest.
std::shared_ptr<std::byte> allocate_pinned(int64_t bytes);

// The calling thread's current stream, and one of torch's pool of urgent ones.
c10::Stream current_stream(c10::Device device);
c10::Stream side_stream(c10::Device device);

// What an exchange works on. The other two are float32, of as many elements on the same device.
struct BucketTensors {
  at::Tensor bucket;  // contiguous; receives the result
  std::optional<at::Tensor> residual;
  std::optional<at::Tensor> velocity;

  // Throws Error unless the dtype is known.
  BucketMemory memory() const;
  // Keeps their memory until `stream` is done with what it was asked to so far.
  void record_stream(c10::Stream stream) const;
};
DType dtype_of(const at::Tensor& tensor);

}  // namespace fastcomm
