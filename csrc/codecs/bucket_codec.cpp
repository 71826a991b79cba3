#include "codecs/bucket_codec.h"

namespace fastcomm {
namespace {

// What one thread takes at a time: enough to hide the hand-over, and a multiple of every block.
constexpr int64_t kTaskElements = int64_t{1} << 16;

}  // namespace

BucketCodec::BucketCodec(const CodecSpec& spec, BucketMemory memory, const std::vector<Run>& runs,
                         float factor, int rank, CodecWorkspace& workspace)
    : layout_(spec, memory, runs),
      memory_(memory),
      factor_(factor),
      rank_(static_cast<uint32_t>(rank)),
      isa_(active_isa()),
      workspace_(workspace) {
  if (layout_.is_rotated()) workspace_.signs = make_rotation_signs(spec.seed);
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
  EncodeArguments arguments{memory_.gradient_at(begin),
                            memory_.residual_at(begin),
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
                     memory_.dtype, {sections.data(), static_cast<int>(sections.size()),
                                     memory_.gradient_at(begin), factor_, end - begin, first_block,
                                     end_block, signs()});
               });
}

void BucketCodec::encode(ElementRange range, std::span<const std::span<const std::byte>> received,
                         std::span<const MessageLabel> received_labels,
                         std::span<std::byte> payload, const MessageLabel& label) {
  layout_.check_payloads(range, received, received_labels);
  encode_sections(range, received, payload, label);
  seal_payload(payload, label, layout_.format(range));
}

void BucketCodec::encode_sections(ElementRange range,
                                  std::span<const std::span<const std::byte>> received,
                                  std::span<std::byte> payload, const MessageLabel& label) {
  if (layout_.is_sparse()) {
    auto& pieces = workspace_.topk_pieces;
    pieces.clear();
    layout_.for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
      if (!compressed) return;
      pieces.push_back({memory_.gradient_at(begin), memory_.residual_at(begin), end - begin});
    });
    const auto [k, num_elements, bytes] = layout_.sparse_section(range);
    workspace_.topk_encoder.encode(
        {isa_, workspace_.threads.get()}, memory_.dtype, pieces, k,
        sections_at(received, kHeaderBytes),
        payload.subspan(static_cast<size_t>(kHeaderBytes), static_cast<size_t>(bytes)));
  }
  layout_.for_each_dense_section(range, [&](int64_t begin, int64_t end, bool compressed,
                                            const DenseFormat& format, int64_t offset) {
    const CodecSpec& spec = layout_.spec();
    const RoundingNoise noise{spec.seed, rank_, label.step, label.bucket, begin};
    const bool is_stochastic = compressed && spec.is_stochastic;
    encode_dense(format, begin, end, received, payload, offset, is_stochastic ? &noise : nullptr);
  });
}

void BucketCodec::decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                         std::span<const MessageLabel> labels) {
  layout_.check_payloads(range, payloads, labels);
  decode_sections(range, payloads);
}

void BucketCodec::decode_sections(ElementRange range,
                                  std::span<const std::span<const std::byte>> payloads) {
  if (layout_.is_sparse()) {
    auto& pieces = workspace_.topk_out_pieces;
    pieces.clear();
    layout_.for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
      if (compressed) pieces.push_back({memory_.gradient_at(begin), end - begin});
    });
    workspace_.topk_decoder.decode({isa_, workspace_.threads.get()}, memory_.dtype, pieces,
                                   layout_.sparse_section(range).k, factor_,
                                   sections_at(payloads, kHeaderBytes));
  }
  layout_.for_each_dense_section(
      range, [&](int64_t begin, int64_t end, bool, const DenseFormat& format, int64_t offset) {
        decode_dense(format, begin, end, payloads, offset);
      });
}

}  // namespace fastcomm
