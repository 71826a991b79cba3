#pragma once
// A gradient bucket in host memory, with its residual, as a Codec: maps ranges of the bucket to
// sections.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codecs/bucket_layout.h"
#include "codecs/codec.h"
#include "codecs/dense/kernels.h"
#include "codecs/sparse/topk.h"
#include "core/thread_pool.h"

namespace fastcomm {

// Encoding and decoding buffers that outlive a bucket, so that a step allocates nothing.
struct CodecWorkspace {
  // Threads that share the work of one range; nullptr: only the caller's.
  std::shared_ptr<ThreadPool> threads;
  std::vector<RotationSigns> signs;  // of each codec of the bucket; only rotated ones have any
  TopKEncoder topk_encoder;
  TopKDecoder topk_decoder;
  std::vector<TopKPiece> topk_pieces;
  std::vector<TopKDecoder::OutPiece> topk_out_pieces;
  std::vector<const std::byte*> sections;
};

class BucketCodec final : public Codec {
 public:
  // `runs` cover the bucket; empty: all of it has the only codec of the list. `factor` multiplies
  // the decoded sum; `rank` tells the random numbers of ranks apart.
  BucketCodec(const std::vector<CodecSpec>& codecs, BucketMemory memory,
              const std::vector<Run>& runs, float factor, int rank, CodecWorkspace& workspace);

  BucketShape shape() const override { return layout_.shape(); }
  std::string describe() const override { return layout_.describe(); }
  int64_t payload_bytes(ElementRange range) const override { return layout_.payload_bytes(range); }
  void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
              std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
              const MessageLabel& label) override;
  void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
              std::span<const MessageLabel> labels) override;

  // The same without headers and checksums: nothing is checked, and the header is left as it is.
  // For benchmarks of the kernels.
  void encode_sections(ElementRange range, std::span<const std::span<const std::byte>> received,
                       std::span<std::byte> payload, const MessageLabel& label);
  void decode_sections(ElementRange range, std::span<const std::span<const std::byte>> payloads);

 private:
  // Elements whose section is at `offset` of every payload.
  struct DenseRun {
    int64_t begin, end;
    int codec;
    const DenseFormat& format;
    int64_t offset;
  };
  void encode_dense(const DenseRun& run, std::span<const std::span<const std::byte>> received,
                    std::span<std::byte> payload, const MessageLabel& label);
  void decode_dense(const DenseRun& run, std::span<const std::span<const std::byte>> payloads);
  void encode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                     std::span<const std::span<const std::byte>> received,
                     std::span<std::byte> payload);
  void decode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                     std::span<const std::span<const std::byte>> payloads);
  const RotationSigns* signs(int codec) const {
    const bool rotates = layout_.is_rotated(codec) && layout_.spec(codec).rotates;
    return rotates ? &workspace_.signs[static_cast<size_t>(codec)] : nullptr;
  }
  // Where the sections at `offset` of every payload are.
  std::span<const std::byte* const> sections_at(
      std::span<const std::span<const std::byte>> payloads, int64_t offset);

  BucketLayout layout_;
  BucketMemory memory_;
  float factor_;
  uint32_t rank_;
  Isa isa_;
  CodecWorkspace& workspace_;
};

}  // namespace fastcomm
