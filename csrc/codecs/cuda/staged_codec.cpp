// A slice is cut in *parts*, ranges of its blocks. Of each part the received bytes go to the device
// on one stream, the kernels run on another, and the payload's bytes come back on a third: while a
// part is encoded, the next one is on its way in and the one before on its way out.

#include <algorithm>

#include "codecs/cuda/bucket_codecs.h"

namespace fastcomm {
namespace {

// Of a part: with less, what a copy costs by itself shows.
constexpr int64_t kSmallestPartBytes = int64_t{1} << 20;
constexpr int64_t kMostParts = 4;

// Bytes of a payload.
struct ByteRange {
  int64_t begin, end;
};

struct Part {
  int64_t first_block, end_block;
  std::vector<ByteRange> bytes;
};

// A payload that is a single dense section is cut; others are one part, whose blocks do not count.
std::vector<Part> cut_parts(std::span<const DenseSections> sections, int64_t payload_bytes) {
  const bool is_cut = sections.size() == 1 && sections[0].pieces.size() == 1 &&
                      sections[0].pieces[0].section_offset == kHeaderBytes;
  if (!is_cut) return {{0, 0, {{kHeaderBytes, payload_bytes}}}};
  const DenseFormat& format = *sections[0].format;
  const int64_t num_blocks = sections[0].num_blocks;
  const int64_t num_parts =
      std::clamp<int64_t>(payload_bytes / kSmallestPartBytes, 1, std::min(kMostParts, num_blocks));
  const int64_t codes_begin =
      kHeaderBytes + format.codes_offset(sections[0].pieces[0].num_elements);
  std::vector<Part> parts;
  for (int64_t i = 0; i < num_parts; ++i) {
    Part part{num_blocks * i / num_parts, num_blocks * (i + 1) / num_parts, {}};
    const bool is_last = i + 1 == num_parts;
    if (format.has_scale) {
      part.bytes.push_back({kHeaderBytes + 2 * part.first_block,
                            is_last ? codes_begin : kHeaderBytes + 2 * part.end_block});
    }
    part.bytes.push_back(
        {codes_begin + part.first_block * format.block_bytes(),
         is_last ? payload_bytes : codes_begin + part.end_block * format.block_bytes()});
    parts.push_back(std::move(part));
  }
  return parts;
}

// Copies parts of payloads between their host memory and their place in the staging buffer.
class Staging {
 public:
  Staging(CudaWorkspace& workspace, size_t num_payloads, int64_t payload_bytes)
      : workspace_(workspace), stride_(align_up(payload_bytes, 256)) {
    if (workspace.staging == nullptr) workspace.staging = std::make_unique<StagingStreams>();
    memory_ = workspace.payloads.reserve(workspace.allocate,
                                         static_cast<int64_t>(num_payloads) * stride_);
    // The kernels of the call before may still read the buffer.
    streams().event.order(workspace.stream, streams().to_device.get());
  }

  StagingStreams& streams() { return *workspace_.staging; }
  std::byte* on_device(size_t payload) const {
    return memory_ + static_cast<int64_t>(payload) * stride_;
  }
  std::vector<const std::byte*> on_device_first(size_t num_payloads) const {
    std::vector<const std::byte*> pointers;
    for (size_t i = 0; i < num_payloads; ++i) pointers.push_back(on_device(i));
    return pointers;
  }

  // What is enqueued on the workspace's stream from now on finds this part of the payloads 0, 1,
  // ...
  void bring(const Part& part, std::span<const std::span<const std::byte>> payloads) {
    if (payloads.empty()) return;
    for (size_t i = 0; i < payloads.size(); ++i) {
      copy(part, on_device(i), payloads[i].data(), cudaMemcpyHostToDevice,
           streams().to_device.get());
    }
    streams().event.order(streams().to_device.get(), workspace_.stream);
  }
  // Fetches what the workspace's stream was asked to write.
  void fetch(const Part& part, size_t payload, std::byte* to) {
    streams().event.order(workspace_.stream, streams().to_host.get());
    copy(part, to, on_device(payload), cudaMemcpyDeviceToHost, streams().to_host.get());
  }

 private:
  static void copy(const Part& part, std::byte* to, const std::byte* from, cudaMemcpyKind kind,
                   cudaStream_t stream) {
    for (const auto [begin, end] : part.bytes) {
      if (begin == end) continue;
      FASTCOMM_CUDA_CHECK(cudaMemcpyAsync(to + begin, from + begin,
                                          static_cast<size_t>(end - begin), kind, stream));
    }
  }

  CudaWorkspace& workspace_;
  const int64_t stride_;
  std::byte* memory_;
};

}  // namespace

void StagedCodec::encode(ElementRange range, std::span<const std::span<const std::byte>> received,
                         std::span<const MessageLabel> received_labels,
                         std::span<std::byte> payload, const MessageLabel& label) {
  const BucketLayout& layout = bucket_.layout();
  layout.check_payloads(range, received, received_labels);
  // As on the CPU, entries that lead out of bounds are an error, not only left out.
  layout.check_sparse_sections(range, received);
  const std::vector<DenseSections> sections = bucket_.dense_sections(range);
  const std::vector<Part> parts = cut_parts(sections, static_cast<int64_t>(payload.size()));
  Staging staging(workspace_, received.size() + 1, static_cast<int64_t>(payload.size()));
  const auto received_on_device = staging.on_device_first(received.size());
  std::byte* const out = staging.on_device(received.size());
  for (const Part& part : parts) {
    staging.bring(part, received);
    if (parts.size() == 1) {
      bucket_.encode(range, received_on_device, out, label);
    } else {
      bucket_.encode_blocks(sections[0], part.first_block, part.end_block, received_on_device, out,
                            label);
    }
    staging.fetch(part, received.size(), payload.data());
  }
  staging.streams().complete.wait_for(staging.streams().to_host.get());
  seal_payload(payload, label, layout.format(range));
}

void StagedCodec::decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                         std::span<const MessageLabel> labels) {
  const BucketLayout& layout = bucket_.layout();
  layout.check_payloads(range, payloads, labels);
  layout.check_sparse_sections(range, payloads);
  const auto payload_bytes = static_cast<int64_t>(payloads[0].size());
  const std::vector<DenseSections> sections = bucket_.dense_sections(range);
  const std::vector<Part> parts = cut_parts(sections, payload_bytes);
  Staging staging(workspace_, payloads.size(), payload_bytes);
  const auto on_device = staging.on_device_first(payloads.size());
  for (const Part& part : parts) {
    staging.bring(part, payloads);
    if (parts.size() == 1) {
      bucket_.decode(range, on_device);
    } else {
      bucket_.decode_blocks(sections[0], part.first_block, part.end_block, on_device);
    }
  }
  staging.streams().complete.wait_for(staging.streams().to_device.get());
}

}  // namespace fastcomm
