#include "codecs/cuda/device_bucket.h"

namespace fastcomm {

DeviceBucket::DeviceBucket(const std::vector<CodecSpec>& codecs, BucketMemory memory,
                           const std::vector<Run>& runs, float factor, int rank,
                           CudaWorkspace& workspace)
    : layout_(codecs, memory, runs),
      memory_(memory),
      factor_(factor),
      rank_(static_cast<uint32_t>(rank)),
      workspace_(workspace) {
  for (int codec = 0; codec < layout_.num_codecs(); ++codec) {
    const CodecSpec& spec = layout_.spec(codec);
    signs_.push_back(layout_.is_rotated(codec) ? make_rotation_sign_bits(spec.seed, spec.rotates)
                                               : RotationSignBits{});
  }
}

std::vector<DenseSections> DeviceBucket::dense_sections(ElementRange range) const {
  std::vector<DenseSections> all;
  layout_.for_each_dense_section(
      range, [&](int64_t begin, int64_t end, int codec, const DenseFormat& format, int64_t offset) {
        auto sections = all.begin();
        while (sections != all.end() && sections->codec != codec) ++sections;
        if (sections == all.end()) sections = all.insert(all.end(), {&format, codec, {}, 0});
        sections->pieces.push_back({sections->num_blocks, begin, end - begin, offset});
        sections->num_blocks += format.num_blocks(end - begin);
      });
  return all;
}

std::vector<const std::byte*> DeviceBucket::sections_at(std::span<const std::byte* const> payloads,
                                                        int64_t offset) const {
  std::vector<const std::byte*> sections;
  for (const std::byte* payload : payloads) sections.push_back(payload + offset);
  return sections;
}

void DeviceBucket::encode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                                 std::span<const std::byte* const> received, std::byte* payload) {
  std::vector<TopKPiece> pieces;
  layout_.for_each_piece(range, [&](int64_t begin, int64_t end, int codec) {
    if (codec != section.codec) return;
    pieces.push_back({memory_.gradient_at(begin), memory_.residual_at(begin), end - begin,
                      memory_.velocity_at(begin)});
  });
  workspace_.topk.encode(workspace_, memory_.dtype, pieces, section.k,
                         sections_at(received, section.offset), payload + section.offset);
}

void DeviceBucket::decode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                                 std::span<const std::byte* const> payloads) {
  std::vector<TopKDecoder::OutPiece> pieces;
  layout_.for_each_piece(range, [&](int64_t begin, int64_t end, int codec) {
    if (codec == section.codec) pieces.push_back({memory_.gradient_at(begin), end - begin});
  });
  workspace_.topk.decode(workspace_, memory_.dtype, pieces, section.k, factor_,
                         sections_at(payloads, section.offset));
}

void DeviceBucket::encode_blocks(const DenseSections& sections, int64_t first_block,
                                 int64_t end_block, std::span<const std::byte* const> received,
                                 std::byte* payload, const MessageLabel& label) {
  const CodecSpec& spec = layout_.spec(sections.codec);
  CudaEncodeArguments arguments{};
  arguments.pieces = DensePieces(workspace_, sections.pieces);
  arguments.first_block = first_block;
  arguments.end_block = end_block;
  arguments.gradient = memory_.gradient;
  arguments.residual = memory_.residual;
  arguments.received = PayloadList(workspace_, received);
  arguments.payload = payload;
  arguments.signs = signs_[static_cast<size_t>(sections.codec)];
  arguments.noise = {spec.seed, rank_, label.step, label.bucket, 0};
  arguments.is_stochastic = spec.is_stochastic;
  arguments.failed = workspace_.failed;
  cuda_dense_kernels(sections.format->wire_id).encode(memory_.dtype, arguments, workspace_.stream);
}

void DeviceBucket::decode_blocks(const DenseSections& sections, int64_t first_block,
                                 int64_t end_block, std::span<const std::byte* const> payloads) {
  CudaDecodeArguments arguments{};
  arguments.pieces = DensePieces(workspace_, sections.pieces);
  arguments.first_block = first_block;
  arguments.end_block = end_block;
  arguments.payloads = PayloadList(workspace_, payloads);
  arguments.out = memory_.gradient;
  arguments.factor = factor_;
  arguments.signs = signs_[static_cast<size_t>(sections.codec)];
  arguments.failed = workspace_.failed;
  cuda_dense_kernels(sections.format->wire_id).decode(memory_.dtype, arguments, workspace_.stream);
}

void DeviceBucket::encode(ElementRange range, std::span<const std::byte* const> received,
                          std::byte* payload, const MessageLabel& label) {
  layout_.for_each_sparse_section(range, [&](const BucketLayout::SparseSection& section) {
    encode_sparse(range, section, received, payload);
  });
  for (const DenseSections& sections : dense_sections(range)) {
    encode_blocks(sections, 0, sections.num_blocks, received, payload, label);
  }
}

void DeviceBucket::decode(ElementRange range, std::span<const std::byte* const> payloads) {
  layout_.for_each_sparse_section(range, [&](const BucketLayout::SparseSection& section) {
    decode_sparse(range, section, payloads);
  });
  for (const DenseSections& sections : dense_sections(range)) {
    decode_blocks(sections, 0, sections.num_blocks, payloads);
  }
}

}  // namespace fastcomm
