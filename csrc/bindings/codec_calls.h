#pragma once
// Calls of codecs on tensors, without a network: for the codecs' users and their benchmark.
// Arguments are checked only for what would be unsafe.

#include <ATen/ATen.h>

#include <optional>
#include <utility>
#include <vector>

#include "codecs/bucket_codec.h"

namespace fastcomm {

// (num_elements, compressed) of each run, as Python has them.
using RunPairs = std::vector<std::pair<int64_t, bool>>;
std::vector<Run> to_runs(const RunPairs& pairs);

// Throw Error unless a tensor is contiguous memory of the CPU, or a residual fits its tensor.
void check_memory(const at::Tensor& tensor, const char* what);
void check_residual(const std::optional<at::Tensor>& residual, const at::Tensor& tensor);
// The bytes of a payload. Throws Error unless it is contiguous and of uint8.
std::span<std::byte> bytes_of(const at::Tensor& payload);

// `sliced`: payloads of slices, one after another, as the ring cuts a bucket. `sealed`: with
// headers and checksums.
int64_t payload_bytes(const CodecSpec& spec, int64_t num_elements, bool sliced,
                      const RunPairs& runs);
void encode(const CodecSpec& spec, const at::Tensor& tensor,
            const std::optional<at::Tensor>& residual, const std::vector<at::Tensor>& received,
            const at::Tensor& payload, CodecWorkspace& workspace, bool sliced, bool sealed);
void decode(const CodecSpec& spec, const at::Tensor& payload, const at::Tensor& out,
            CodecWorkspace& workspace, bool sliced, bool sealed);

// Zeros of float32, in memory that is good to stream through.
at::Tensor streamed_zeros(int64_t num_elements);
// Gives the memory of a part of streamed_zeros() back; its values are lost.
void release_streamed(const at::Tensor& part);
// A copy past the cache, of float32.
void copy_streamed(const at::Tensor& out, const at::Tensor& tensor, CodecWorkspace& workspace);

}  // namespace fastcomm
