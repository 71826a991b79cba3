#include "bindings/codec_calls.h"

#include "bindings/communicator.h"
#include "collectives/schedules.h"
#include "core/pages.h"
#include "core/stream_copy.h"

namespace fastcomm {

void check_memory(const at::Tensor& tensor, const char* what) {
  FASTCOMM_CHECK(tensor.device().is_cpu(),
                 what << " is on " << tensor.device() << ", not on the CPU");
  FASTCOMM_CHECK(tensor.is_contiguous(), what << " is not contiguous");
}

void check_residual(const std::optional<at::Tensor>& residual, const at::Tensor& tensor) {
  if (!residual) return;
  check_memory(*residual, "residual");
  FASTCOMM_CHECK(residual->scalar_type() == at::kFloat && residual->numel() == tensor.numel(),
                 "residual has " << residual->numel() << " elements of " << residual->scalar_type()
                                 << ", not " << tensor.numel() << " of float32");
}

std::span<std::byte> bytes_of(const at::Tensor& payload) {
  check_memory(payload, "payload");
  FASTCOMM_CHECK(payload.scalar_type() == at::kByte, "payload is not of uint8");
  return {static_cast<std::byte*>(payload.data_ptr()), static_cast<size_t>(payload.numel())};
}

std::vector<Run> to_runs(const RunPairs& pairs) {
  std::vector<Run> runs;
  for (const auto& [num_elements, compressed] : pairs) runs.push_back({num_elements, compressed});
  return runs;
}

namespace {

BucketMemory memory_of(const at::Tensor& tensor, const std::optional<at::Tensor>& residual) {
  check_memory(tensor, "tensor");
  check_residual(residual, tensor);
  return {tensor.data_ptr(), dtype_of(tensor), residual ? residual->data_ptr<float>() : nullptr,
          tensor.numel()};
}

// Payloads of slices, one after another, as the ring cuts a bucket: for the codecs' users and their
// benchmark. A whole tensor in one payload is one slice.
struct Slices {
  Slices(const BucketCodec& codec, bool is_whole) {
    const BucketShape shape = codec.shape();
    ranges = is_whole
                 ? std::vector<ElementRange>{{0, shape.num_elements}}
                 : cut_slices({0, shape.num_elements}, slice_elements(shape, shape.num_elements));
    for (ElementRange range : ranges) {
      offsets.push_back(bytes);
      bytes += align_up(codec.payload_bytes(range), kSectionAlignment);
    }
    offsets.push_back(bytes);
  }
  template <class Byte>
  std::span<Byte> payload(const BucketCodec& codec, std::span<Byte> payloads, size_t i) const {
    return payloads.subspan(static_cast<size_t>(offsets[i]),
                            static_cast<size_t>(codec.payload_bytes(ranges[i])));
  }
  std::vector<ElementRange> ranges;
  std::vector<int64_t> offsets;
  int64_t bytes = 0;
};

void check_payload_size(std::span<const std::byte> payload, const Slices& slices) {
  FASTCOMM_CHECK(static_cast<int64_t>(payload.size()) == slices.bytes,
                 "the payload has " << payload.size() << " bytes, not " << slices.bytes);
}

}  // namespace

int64_t payload_bytes(const CodecSpec& spec, int64_t num_elements, bool sliced,
                      const RunPairs& runs) {
  CodecWorkspace workspace;
  const BucketMemory nowhere{nullptr, DType::kFloat32, nullptr, num_elements};
  return Slices(BucketCodec(spec, nowhere, to_runs(runs), 1.0f, 0, workspace), !sliced).bytes;
}

void encode(const CodecSpec& spec, const at::Tensor& tensor,
            const std::optional<at::Tensor>& residual, const std::vector<at::Tensor>& received,
            const at::Tensor& payload, CodecWorkspace& workspace, bool sliced, bool sealed) {
  BucketCodec codec(spec, memory_of(tensor, residual), {}, 1.0f, 0, workspace);
  const Slices slices(codec, !sliced);
  check_payload_size(bytes_of(payload), slices);
  for (const at::Tensor& other : received) check_payload_size(bytes_of(other), slices);
  const std::vector<MessageLabel> labels(received.size());
  std::vector<std::span<const std::byte>> received_slices(received.size());
  for (size_t i = 0; i < slices.ranges.size(); ++i) {
    for (size_t r = 0; r < received.size(); ++r) {
      received_slices[r] = slices.payload<std::byte>(codec, bytes_of(received[r]), i);
    }
    const std::span<std::byte> slice = slices.payload<std::byte>(codec, bytes_of(payload), i);
    if (sealed) {
      codec.encode(slices.ranges[i], received_slices, labels, slice, {});
    } else {
      codec.encode_sections(slices.ranges[i], received_slices, slice, {});
    }
  }
}

void decode(const CodecSpec& spec, const at::Tensor& payload, const at::Tensor& out,
            CodecWorkspace& workspace, bool sliced, bool sealed) {
  BucketCodec codec(spec, memory_of(out, std::nullopt), {}, 1.0f, 0, workspace);
  const Slices slices(codec, !sliced);
  const MessageLabel label;
  if (!sliced) {  // of any size: the header's check says what is wrong
    const std::span<const std::byte> bytes = bytes_of(payload);
    return codec.decode(slices.ranges[0], {&bytes, 1}, {&label, 1});
  }
  check_payload_size(bytes_of(payload), slices);
  for (size_t i = 0; i < slices.ranges.size(); ++i) {
    const std::span<const std::byte> bytes = slices.payload<std::byte>(codec, bytes_of(payload), i);
    if (sealed) {
      codec.decode(slices.ranges[i], {&bytes, 1}, {&label, 1});
    } else {
      codec.decode_sections(slices.ranges[i], {&bytes, 1});
    }
  }
}

void copy_streamed(const at::Tensor& out, const at::Tensor& tensor, CodecWorkspace& workspace) {
  check_memory(out, "out");
  check_residual(out, tensor);  // as many elements of float32
  run_in_parts(
      workspace.threads.get(), tensor.numel(), int64_t{1} << 18, [&](int64_t begin, int64_t end) {
        stream_copy(tensor.data_ptr<float>() + begin, out.data_ptr<float>() + begin, end - begin);
      });
}

at::Tensor streamed_zeros(int64_t num_elements) {
  auto pages = std::make_shared<Pages>(num_elements * static_cast<int64_t>(sizeof(float)));
  return at::from_blob(
      pages->data(), {num_elements}, [pages](void*) mutable { pages.reset(); }, at::kFloat);
}

void release_streamed(const at::Tensor& part) {
  check_memory(part, "part");
  release_pages(static_cast<std::byte*>(part.data_ptr()), static_cast<int64_t>(part.nbytes()));
}

}  // namespace fastcomm
