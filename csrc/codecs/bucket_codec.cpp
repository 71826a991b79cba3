#include "codecs/bucket_codec.h"

#include <algorithm>
#include <limits>
#include <sstream>

#include "core/crc32c.h"

namespace fastcomm {
namespace {

// Payloads of a slice: with less, what gloo does for each message shows.
constexpr int64_t kSmallestSliceBytes = int64_t{1} << 17;
constexpr int64_t kLargestSliceBytes = int64_t{1} << 22;
// Top-k selects within a slice. This is more than DDP's buckets of 25 MB have; of larger ones, one
// slice is on the wire while the next is selected from.
constexpr int64_t kSparseSliceElements = int64_t{1} << 23;

// What one thread takes at a time: enough to hide the hand-over, and a multiple of every block.
constexpr int64_t kTaskElements = int64_t{1} << 16;

}  // namespace

BucketCodec::BucketCodec(const CodecSpec& spec, BucketMemory memory, const std::vector<Run>& runs,
                         float factor, int rank, CodecWorkspace& workspace)
    : dense_(spec.name == "topk" ? nullptr : &dense_format(spec.name)),
      plain_(&dense_format("fp32")),
      spec_(spec),
      memory_(memory),
      factor_(factor),
      rank_(static_cast<uint32_t>(rank)),
      isa_(active_isa()),
      workspace_(workspace) {
  FASTCOMM_CHECK(!is_sparse() || (spec.density > 0 && spec.density <= kLargestSparseDensity),
                 "density " << spec.density << " is outside (0, " << kLargestSparseDensity << "]");
  FASTCOMM_CHECK(!spec.is_stochastic || (!is_sparse() && dense_->has_stochastic_rounding),
                 "codec " << spec.name << " has no stochastic rounding");
  FASTCOMM_CHECK(!spec.is_stochastic || memory.residual == nullptr,
                 "stochastic rounding keeps no residual");
  if (!is_sparse() && dense_->is_rotated) workspace_.signs = make_rotation_signs(spec.seed);
  int64_t begin = 0;
  for (const Run& run : runs) {
    run_begins_.push_back(begin);
    run_compressed_.push_back(run.compressed);
    begin += run.num_elements;
  }
  if (runs.empty()) {
    run_begins_.push_back(0);
    run_compressed_.push_back(true);
    begin = memory_.num_elements;
  }
  run_begins_.push_back(begin);
  FASTCOMM_CHECK(begin == memory_.num_elements,
                 "the runs cover " << begin << " elements of a bucket of " << memory_.num_elements);
}

template <class Visit>
void BucketCodec::for_each_piece(ElementRange range, Visit&& visit) const {
  if (range.empty()) return;
  auto run =
      static_cast<size_t>(std::upper_bound(run_begins_.begin(), run_begins_.end(), range.begin) -
                          run_begins_.begin() - 1);
  for (; run < run_compressed_.size() && run_begins_[run] < range.end; ++run) {
    const int64_t begin = std::max(range.begin, run_begins_[run]);
    const int64_t end = std::min(range.end, run_begins_[run + 1]);
    if (begin < end) visit(begin, end, run_compressed_[run]);
  }
}

void* BucketCodec::gradient_at(int64_t element) const {
  return static_cast<std::byte*>(memory_.gradient) +
         static_cast<size_t>(element) * dtype_bytes(memory_.dtype);
}

float* BucketCodec::residual_at(int64_t element) const {
  return memory_.residual == nullptr ? nullptr : memory_.residual + element;
}

int64_t BucketCodec::num_compressed(ElementRange range) const {
  int64_t count = 0;
  for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
    if (compressed) count += end - begin;
  });
  return count;
}

PayloadFormat BucketCodec::format(ElementRange range) const {
  FASTCOMM_CHECK(
      range.size() <= std::numeric_limits<uint32_t>::max(),
      "a payload of " << range.size() << " elements is too large for its header: cut the tensor");
  const auto num_elements = static_cast<uint32_t>(range.size());
  if (is_sparse()) {
    const int64_t k = topk_count(spec_.density, num_compressed(range));
    return {kTopKWireId, static_cast<uint32_t>(k), num_elements};
  }
  const auto block_elements = static_cast<uint32_t>(dense_->block_elements);
  return {dense_->wire_id, dense_->is_rotated ? spec_.seed : block_elements, num_elements};
}

BucketShape BucketCodec::shape() const {
  if (is_sparse()) return {memory_.num_elements, 512, kSparseSliceElements, kSparseSliceElements};
  const int64_t bits = 8 * dense_->unit_bytes / dense_->elements_per_unit;
  return {memory_.num_elements, dense_->block_elements,
          align_up(kSmallestSliceBytes * 8 / bits, dense_->block_elements),
          align_up(kLargestSliceBytes * 8 / bits, dense_->block_elements)};
}

std::string BucketCodec::describe() const {
  const int64_t num_compressed_elements = num_compressed({0, memory_.num_elements});
  uint32_t layout = 0;  // of the runs: the sizes alone would not tell two orders apart
  for (size_t run = 0; run < run_compressed_.size(); ++run) {
    const int64_t entry[2] = {run_begins_[run], run_compressed_[run]};
    layout = crc32c(layout, std::as_bytes(std::span(entry)));
  }
  std::ostringstream text;
  if (is_sparse()) {
    text << "topk k=" << topk_count(spec_.density, num_compressed_elements);
  } else {
    text << dense_->name;
    if (dense_->is_rotated) text << " seed=" << spec_.seed;
  }
  text << ", " << memory_.num_elements << " elements, layout " << std::hex << layout;
  return text.str();
}

int64_t BucketCodec::payload_bytes(ElementRange range) const {
  int64_t bytes = kHeaderBytes;
  if (is_sparse()) {
    const int64_t count = num_compressed(range);
    bytes += topk_section_bytes(topk_count(spec_.density, count), count);
  }
  for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
    if (compressed && is_sparse()) return;
    bytes += format_of(compressed).section_bytes(end - begin);
  });
  return bytes;
}

std::span<const std::byte* const> BucketCodec::sections_at(
    std::span<const std::span<const std::byte>> payloads, int64_t offset) {
  workspace_.sections.clear();
  for (const auto& payload : payloads) workspace_.sections.push_back(payload.data() + offset);
  return workspace_.sections;
}

void BucketCodec::encode_dense(const DenseFormat& format, int64_t begin, int64_t end,
                               std::span<const std::span<const std::byte>> received,
                               std::span<std::byte> payload, int64_t offset,
                               const RoundingNoise* noise) {
  const auto sections = sections_at(received, offset);
  EncodeArguments arguments{gradient_at(begin),
                            residual_at(begin),
                            sections.data(),
                            static_cast<int>(sections.size()),
                            payload.data() + offset,
                            end - begin,
                            0,
                            0,
                            signs(),
                            noise};
  format.clear_padding(arguments.section, arguments.num_elements);
  run_in_parts(workspace_.threads.get(), format.num_blocks(end - begin),
               kTaskElements / format.block_elements, [&](int64_t first_block, int64_t end_block) {
                 EncodeArguments part = arguments;
                 part.first_block = first_block;
                 part.end_block = end_block;
                 format.kernels_of(isa_).encode(memory_.dtype, part);
               });
}

void BucketCodec::decode_dense(const DenseFormat& format, int64_t begin, int64_t end,
                               std::span<const std::span<const std::byte>> payloads,
                               int64_t offset) {
  const auto sections = sections_at(payloads, offset);
  run_in_parts(workspace_.threads.get(), format.num_blocks(end - begin),
               kTaskElements / format.block_elements, [&](int64_t first_block, int64_t end_block) {
                 format.kernels_of(isa_).decode(
                     memory_.dtype,
                     {sections.data(), static_cast<int>(sections.size()), gradient_at(begin),
                      factor_, end - begin, first_block, end_block, signs()});
               });
}

void BucketCodec::check_payloads(ElementRange range,
                                 std::span<const std::span<const std::byte>> payloads,
                                 std::span<const MessageLabel> labels,
                                 const PayloadFormat& payload_format) const {
  const int64_t expected_bytes = payload_bytes(range);
  for (size_t i = 0; i < payloads.size(); ++i) {
    check_payload(payloads[i], labels[i], payload_format);
    // The header is right about its size, but not even that need be the size that is decoded.
    const auto bytes = static_cast<int64_t>(payloads[i].size());
    if (bytes != expected_bytes) {
      FASTCOMM_THROW(PayloadError, "received payload has " << bytes << " bytes, this rank expects "
                                                           << expected_bytes
                                                           << ": it is malformed");
    }
  }
}

void BucketCodec::encode(ElementRange range, std::span<const std::span<const std::byte>> received,
                         std::span<const MessageLabel> received_labels,
                         std::span<std::byte> payload, const MessageLabel& label) {
  const PayloadFormat payload_format = format(range);
  check_payloads(range, received, received_labels, payload_format);
  encode_sections(range, received, payload, label);
  seal_payload(payload, label, payload_format);
}

void BucketCodec::encode_sections(ElementRange range,
                                  std::span<const std::span<const std::byte>> received,
                                  std::span<std::byte> payload, const MessageLabel& label) {
  int64_t offset = kHeaderBytes;
  if (is_sparse()) {
    auto& pieces = workspace_.topk_pieces;
    pieces.clear();
    int64_t count = 0;
    for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
      if (!compressed) return;
      pieces.push_back({gradient_at(begin), residual_at(begin), end - begin});
      count += end - begin;
    });
    const int64_t k = topk_count(spec_.density, count);
    const int64_t bytes = topk_section_bytes(k, count);
    workspace_.topk_encoder.encode(
        {isa_, workspace_.threads.get()}, memory_.dtype, pieces, k, sections_at(received, offset),
        payload.subspan(static_cast<size_t>(offset), static_cast<size_t>(bytes)));
    offset += bytes;
  }
  for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
    if (compressed && is_sparse()) return;
    const DenseFormat& dense = format_of(compressed);
    const RoundingNoise noise{spec_.seed, rank_, label.step, label.bucket, begin};
    const bool is_stochastic = compressed && spec_.is_stochastic;
    encode_dense(dense, begin, end, received, payload, offset, is_stochastic ? &noise : nullptr);
    offset += dense.section_bytes(end - begin);
  });
}

void BucketCodec::decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                         std::span<const MessageLabel> labels) {
  check_payloads(range, payloads, labels, format(range));
  decode_sections(range, payloads);
}

void BucketCodec::decode_sections(ElementRange range,
                                  std::span<const std::span<const std::byte>> payloads) {
  int64_t offset = kHeaderBytes;
  if (is_sparse()) {
    auto& pieces = workspace_.topk_out_pieces;
    pieces.clear();
    int64_t count = 0;
    for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
      if (!compressed) return;
      pieces.push_back({gradient_at(begin), end - begin});
      count += end - begin;
    });
    const int64_t k = topk_count(spec_.density, count);
    workspace_.topk_decoder.decode({isa_, workspace_.threads.get()}, memory_.dtype, pieces, k,
                                   factor_, sections_at(payloads, offset));
    offset += topk_section_bytes(k, count);
  }
  for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
    if (compressed && is_sparse()) return;
    const DenseFormat& dense = format_of(compressed);
    decode_dense(dense, begin, end, payloads, offset);
    offset += dense.section_bytes(end - begin);
  });
}

}  // namespace fastcomm
