#pragma once
// Calls of codecs on tensors, without a network: for the codecs' users and their benchmark.
// Arguments are checked only for what would be unsafe.

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/device_codecs.h"
#include "codecs/bucket_codec.h"

namespace fastcomm {

// (num_elements, index of the codec) of each run, as Python has them.
using RunPairs = std::vector<std::pair<int64_t, int>>;
std::vector<Run> to_runs(const RunPairs& pairs);

// Throw Error unless a tensor is contiguous memory of a device that fastcomm was built for, or a
// residual or velocity fits its tensor.
void check_memory(const at::Tensor& tensor, const char* what);
void check_companion(const at::Tensor& companion, const char* what, const at::Tensor& tensor);
void check_tensors(const BucketTensors& tensors);

// Buffers that outlive a call, on the CPU and for each stream of a GPU that was used.
struct CallWorkspace {
  struct Device {
    std::shared_ptr<FailureRecord> failures;
    std::unique_ptr<DeviceCodecs> codecs;
  };
  // Of the current stream of a GPU.
  Device& on(c10::Device device);
  // Waits for what was enqueued there. Throws PayloadError if the device found a payload wrong.
  void check(c10::Device device);

  CodecWorkspace cpu;
  std::map<std::pair<c10::DeviceIndex, c10::StreamId>, Device> devices;
};

// `sliced`: payloads of slices, one after another, as the ring cuts a bucket. `sealed`: with
// headers and checksums. On a GPU all tensors are on the same one, and calls enqueue their work on
// the current stream; decode() of sealed payloads waits to see what the device found wrong.
int64_t payload_bytes(const std::vector<CodecSpec>& codecs, int64_t num_elements, bool sliced,
                      const RunPairs& runs);
void encode(const CodecSpec& spec, const at::Tensor& tensor,
            const std::optional<at::Tensor>& residual, const std::vector<at::Tensor>& received,
            const at::Tensor& payload, CallWorkspace& workspace, bool sliced, bool sealed,
            const std::optional<at::Tensor>& velocity);
void decode(const CodecSpec& spec, const at::Tensor& payload, const at::Tensor& out,
            CallWorkspace& workspace, bool sliced, bool sealed);
// The number of elements that an unverified payload claims to hold.
int64_t claimed_num_elements(const at::Tensor& payload);

// Zeros of float32, in memory that is good to stream through.
at::Tensor streamed_zeros(int64_t num_elements);
// Gives the memory of a part of streamed_zeros() back; its values are lost.
void release_streamed(const at::Tensor& part);
// A copy past the cache, of float32.
void copy_streamed(const at::Tensor& out, const at::Tensor& tensor, CallWorkspace& workspace);

}  // namespace fastcomm
