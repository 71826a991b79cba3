#include "codecs/bucket_codec.h"

namespace fastcomm {
namespace {

// What one thread takes at a time: enough to hide the hand-over, and a multiple of every block.
constexpr int64_t kTaskElements = int64_t{1} << 16;

}  // namespace

BucketCodec::BucketCodec(const std::vector<CodecSpec>& codecs, BucketMemory memory,
                         const std::vector<Run>& runs, float factor, int rank,
                         CodecWorkspace& workspace)
    : layout_(codecs, memory, runs),
      memory_(memory),
      factor_(factor),
      rank_(static_cast<uint32_t>(rank)),
      isa_(active_isa()),
      workspace_(workspace) {
  workspace_.signs.resize(codecs.size());
  for (int codec = 0; codec < layout_.num_codecs(); ++codec) {
    if (!layout_.is_rotated(codec)) continue;
    workspace_.signs[static_cast<size_t>(codec)] = make_rotation_signs(layout_.spec(codec).seed);
  }
}

std::span<const std::byte* const> BucketCodec::sections_at(
    std::span<const std::span<const std::byte>> payloads, int64_t offset) {
  workspace_.sections.clear();
  for (const auto& payload : payloads) workspace_.sections.push_back(payload.data() + offset);
  return workspace_.sections;
}

void BucketCodec::encode_dense(const DenseRun& run,
                               std::span<const std::span<const std::byte>> received,
                               std::span<std::byte> payload, const MessageLabel& label) {
  const CodecSpec& spec = layout_.spec(run.codec);
  const RoundingNoise noise{spec.seed, rank_, label.step, label.bucket, run.begin};
  const auto sections = sections_at(received, run.offset);
  EncodeArguments arguments{memory_.gradient_at(run.begin),
                            memory_.residual_at(run.begin),
                            sections.data(),
                            static_cast<int>(sections.size()),
                            payload.data() + run.offset,
                            run.end - run.begin,
                            0,
                            0,
                            signs(run.codec),
                            spec.is_stochastic ? &noise : nullptr};
  run.format.clear_padding(arguments.section, arguments.num_elements);
  run_in_parts(workspace_.threads.get(), run.format.num_blocks(arguments.num_elements),
               kTaskElements / run.format.block_elements,
               [&](int64_t first_block, int64_t end_block) {
                 EncodeArguments part = arguments;
                 part.first_block = first_block;
                 part.end_block = end_block;
                 run.format.kernels_of(isa_).encode(memory_.dtype, part);
               });
}

void BucketCodec::decode_dense(const DenseRun& run,
                               std::span<const std::span<const std::byte>> payloads) {
  const auto sections = sections_at(payloads, run.offset);
  const int64_t num_elements = run.end - run.begin;
  run_in_parts(workspace_.threads.get(), run.format.num_blocks(num_elements),
               kTaskElements / run.format.block_elements,
               [&](int64_t first_block, int64_t end_block) {
                 run.format.kernels_of(isa_).decode(
                     memory_.dtype, {sections.data(), static_cast<int>(sections.size()),
                                     memory_.gradient_at(run.begin), factor_, num_elements,
                                     first_block, end_block, signs(run.codec)});
               });
}

void BucketCodec::encode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                                std::span<const std::span<const std::byte>> received,
                                std::span<std::byte> payload) {
  auto& pieces = workspace_.topk_pieces;
  pieces.clear();
  layout_.for_each_piece(range, [&](int64_t begin, int64_t end, int codec) {
    if (codec != section.codec) return;
    pieces.push_back({memory_.gradient_at(begin), memory_.residual_at(begin), end - begin,
                      memory_.velocity_at(begin)});
  });
  workspace_.topk_encoder.encode(
      {isa_, workspace_.threads.get()}, memory_.dtype, pieces, section.k,
      sections_at(received, section.offset),
      payload.subspan(static_cast<size_t>(section.offset), static_cast<size_t>(section.bytes)));
}

void BucketCodec::decode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                                std::span<const std::span<const std::byte>> payloads) {
  auto& pieces = workspace_.topk_out_pieces;
  pieces.clear();
  layout_.for_each_piece(range, [&](int64_t begin, int64_t end, int codec) {
    if (codec == section.codec) pieces.push_back({memory_.gradient_at(begin), end - begin});
  });
  workspace_.topk_decoder.decode({isa_, workspace_.threads.get()}, memory_.dtype, pieces, section.k,
                                 factor_, sections_at(payloads, section.offset));
}

void BucketCodec::encode(ElementRange range, std::span<const std::span<const std::byte>> received,
                         std::span<const MessageLabel> received_labels,
                         std::span<std::byte> payload, const MessageLabel& label) {
  layout_.check_payloads(range, received, received_labels);
  // Of several, all first, although each is checked when its turn comes: an error in a later one
  // leaves the residuals as they were.
  if (layout_.num_sparse_codecs() > 1) layout_.check_sparse_sections(range, received);
  encode_sections(range, received, payload, label);
  seal_payload(payload, label, layout_.format(range));
}

void BucketCodec::encode_sections(ElementRange range,
                                  std::span<const std::span<const std::byte>> received,
                                  std::span<std::byte> payload, const MessageLabel& label) {
  layout_.for_each_sparse_section(range, [&](const BucketLayout::SparseSection& section) {
    encode_sparse(range, section, received, payload);
  });
  layout_.for_each_dense_section(
      range, [&](int64_t begin, int64_t end, int codec, const DenseFormat& format, int64_t offset) {
        encode_dense({begin, end, codec, format, offset}, received, payload, label);
      });
}

void BucketCodec::decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                         std::span<const MessageLabel> labels) {
  layout_.check_payloads(range, payloads, labels);
  decode_sections(range, payloads);
}

void BucketCodec::decode_sections(ElementRange range,
                                  std::span<const std::span<const std::byte>> payloads) {
  layout_.for_each_sparse_section(range, [&](const BucketLayout::SparseSection& section) {
    decode_sparse(range, section, payloads);
  });
  layout_.for_each_dense_section(
      range, [&](int64_t begin, int64_t end, int codec, const DenseFormat& format, int64_t offset) {
        decode_dense({begin, end, codec, format, offset}, payloads);
      });
}

}  // namespace fastcomm
