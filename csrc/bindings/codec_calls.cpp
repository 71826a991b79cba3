#include "bindings/codec_calls.h"

#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "collectives/schedules.h"
#include "core/pages.h"
#include "core/stream_copy.h"

namespace fastcomm {

void check_memory(const at::Tensor& tensor, const char* what) {
  FASTCOMM_CHECK(tensor.device().is_cpu() || (has_cuda && tensor.device().is_cuda()),
                 what << " is on " << tensor.device() << ", not on the CPU"
                      << (has_cuda ? " or a CUDA device" : ""));
  FASTCOMM_CHECK(tensor.is_contiguous(), what << " is not contiguous");
}

void check_companion(const at::Tensor& companion, const char* what, const at::Tensor& tensor) {
  check_memory(companion, what);
  FASTCOMM_CHECK(companion.scalar_type() == at::kFloat && companion.numel() == tensor.numel(),
                 what << " has " << companion.numel() << " elements of " << companion.scalar_type()
                      << ", not " << tensor.numel() << " of float32");
  FASTCOMM_CHECK(companion.device() == tensor.device(),
                 what << " is on " << companion.device() << ", its tensor on " << tensor.device());
}

void check_tensors(const BucketTensors& tensors) {
  check_memory(tensors.bucket, "tensor");
  dtype_of(tensors.bucket);
  if (tensors.residual) check_companion(*tensors.residual, "residual", tensors.bucket);
  if (tensors.velocity) check_companion(*tensors.velocity, "velocity", tensors.bucket);
}

std::vector<Run> to_runs(const RunPairs& pairs) {
  std::vector<Run> runs;
  for (const auto& [num_elements, codec] : pairs) runs.push_back({num_elements, codec});
  return runs;
}

CallWorkspace::Device& CallWorkspace::on(c10::Device device) {
  const c10::Stream stream = current_stream(device);
  Device& found = devices[{device.index(), stream.id()}];
  if (found.codecs == nullptr) {
    found.failures = make_failure_record(device);
    found.codecs = make_device_codecs(stream, found.failures);
  }
  return found;
}

void CallWorkspace::check(c10::Device device) {
  const Device& used = on(device);
  used.codecs->synchronize();
  try {
    used.failures->check();
  } catch (const PayloadError&) {
    devices.clear();  // its codecs would go on to give NaN
    throw;
  }
}

namespace {

void check_on_cpu(const at::Tensor& tensor, const char* what) {
  check_memory(tensor, what);
  FASTCOMM_CHECK(tensor.is_cpu(), what << " is on " << tensor.device() << ", not on the CPU");
}

// The bytes of a payload. Throws Error unless it is contiguous and of uint8.
std::span<std::byte> bytes_of(const at::Tensor& payload) {
  check_memory(payload, "payload");
  FASTCOMM_CHECK(payload.scalar_type() == at::kByte, "payload is not of uint8");
  return {static_cast<std::byte*>(payload.data_ptr()), static_cast<size_t>(payload.numel())};
}

std::span<std::byte> bytes_on(c10::Device device, const at::Tensor& payload) {
  FASTCOMM_CHECK(payload.device() == device,
                 "payload is on " << payload.device() << ", the elements on " << device);
  return bytes_of(payload);
}

// BucketCodec without headers and checksums.
class BareBucketCodec final : public Codec {
 public:
  explicit BareBucketCodec(BucketCodec codec) : codec_(std::move(codec)) {}

  BucketShape shape() const override { return codec_.shape(); }
  std::string describe() const override { return codec_.describe(); }
  int64_t payload_bytes(ElementRange range) const override { return codec_.payload_bytes(range); }
  void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
              std::span<const MessageLabel> /*received_labels*/, std::span<std::byte> payload,
              const MessageLabel& label) override {
    codec_.encode_sections(range, received, payload, label);
  }
  void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
              std::span<const MessageLabel> /*labels*/) override {
    codec_.decode_sections(range, payloads);
  }

 private:
  BucketCodec codec_;
};

// The codec of a tensor, with payloads on its device.
std::unique_ptr<Codec> make_codec(const CodecSpec& spec, const BucketTensors& tensors,
                                  CallWorkspace& workspace, bool sealed) {
  check_tensors(tensors);
  const BucketMemory memory = tensors.memory();
  if (!tensors.bucket.is_cpu()) {
    DeviceCodecs& codecs = *workspace.on(tensors.bucket.device()).codecs;
    return codecs.stream_codec({spec}, memory, {}, 1.0f, 0, sealed);
  }
  BucketCodec codec({spec}, memory, {}, 1.0f, 0, workspace.cpu);
  if (sealed) return std::make_unique<BucketCodec>(std::move(codec));
  return std::make_unique<BareBucketCodec>(std::move(codec));
}

// Payloads of slices, one after another, as the ring cuts a bucket: for the codecs' users and their
// benchmark. A whole tensor in one payload is one slice.
struct Slices {
  Slices(const Codec& codec, bool is_whole) {
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
  std::span<Byte> payload(const Codec& codec, std::span<Byte> payloads, size_t i) const {
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

int64_t payload_bytes(const std::vector<CodecSpec>& codecs, int64_t num_elements, bool sliced,
                      const RunPairs& runs) {
  CodecWorkspace workspace;
  const BucketMemory nowhere{nullptr, DType::kFloat32, nullptr, num_elements};
  return Slices(BucketCodec(codecs, nowhere, to_runs(runs), 1.0f, 0, workspace), !sliced).bytes;
}

int64_t claimed_num_elements(const at::Tensor& payload) {
  bytes_of(payload);
  const at::Tensor header = payload.flatten().narrow(0, 0, std::min(payload.numel(), kHeaderBytes));
  return int64_t{payload_num_elements(bytes_of(header.cpu()))};
}

void encode(const CodecSpec& spec, const at::Tensor& tensor,
            const std::optional<at::Tensor>& residual, const std::vector<at::Tensor>& received,
            const at::Tensor& payload, CallWorkspace& workspace, bool sliced, bool sealed,
            const std::optional<at::Tensor>& velocity) {
  const c10::DeviceGuard guard(tensor.device());
  const auto codec = make_codec(spec, {tensor, residual, velocity}, workspace, sealed);
  const Slices slices(*codec, !sliced);
  const std::span<std::byte> bytes = bytes_on(tensor.device(), payload);
  check_payload_size(bytes, slices);
  for (const at::Tensor& other : received) {
    check_payload_size(bytes_on(tensor.device(), other), slices);
  }
  const std::vector<MessageLabel> labels(received.size());
  std::vector<std::span<const std::byte>> received_slices(received.size());
  for (size_t i = 0; i < slices.ranges.size(); ++i) {
    for (size_t r = 0; r < received.size(); ++r) {
      received_slices[r] = slices.payload<std::byte>(*codec, bytes_of(received[r]), i);
    }
    codec->encode(slices.ranges[i], received_slices, labels,
                  slices.payload<std::byte>(*codec, bytes, i), {});
  }
}

void decode(const CodecSpec& spec, const at::Tensor& payload, const at::Tensor& out,
            CallWorkspace& workspace, bool sliced, bool sealed) {
  const c10::DeviceGuard guard(out.device());
  const auto codec = make_codec(spec, {out, std::nullopt, std::nullopt}, workspace, sealed);
  const Slices slices(*codec, !sliced);
  const std::span<const std::byte> bytes = bytes_on(out.device(), payload);
  const MessageLabel label;
  const bool is_whole = !sliced && sealed;
  if (!is_whole) check_payload_size(bytes, slices);
  if (is_whole && !out.is_cpu() && payload.numel() != codec->payload_bytes(slices.ranges[0])) {
    // A device would read past its end. The CPU says what is wrong, by the header if it can.
    return decode(spec, payload.cpu(), out.cpu(), workspace, sliced, sealed);
  }
  for (size_t i = 0; i < slices.ranges.size(); ++i) {
    // One of any size on the CPU: the header's check says what is wrong.
    const std::span<const std::byte> slice =
        is_whole ? bytes : slices.payload<const std::byte>(*codec, bytes, i);
    codec->decode(slices.ranges[i], {&slice, 1}, {&label, 1});
  }
  if (sealed && !out.is_cpu()) workspace.check(out.device());
}

void copy_streamed(const at::Tensor& out, const at::Tensor& tensor, CallWorkspace& workspace) {
  check_on_cpu(out, "out");
  check_companion(out, "out", tensor);
  run_in_parts(workspace.cpu.threads.get(), tensor.numel(), int64_t{1} << 18,
               [&](int64_t begin, int64_t end) {
                 stream_copy(tensor.data_ptr<float>() + begin, out.data_ptr<float>() + begin,
                             end - begin);
               });
}

at::Tensor streamed_zeros(int64_t num_elements) {
  auto pages = std::make_shared<Pages>(num_elements * static_cast<int64_t>(sizeof(float)));
  return at::from_blob(
      pages->data(), {num_elements}, [pages](void*) mutable { pages.reset(); }, at::kFloat);
}

void release_streamed(const at::Tensor& part) {
  check_on_cpu(part, "part");
  release_pages(static_cast<std::byte*>(part.data_ptr()), static_cast<int64_t>(part.nbytes()));
}

}  // namespace fastcomm
