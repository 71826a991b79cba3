#pragma once
// A gradient bucket in device memory, with its residual: maps ranges of it to the kernels of its
// sections.

#include <span>
#include <vector>

#include "codecs/bucket_layout.h"
#include "codecs/cuda/dense.h"
#include "codecs/cuda/workspace.h"

namespace fastcomm {

// The dense sections of a payload that have one codec, ready to launch, whole or in parts.
struct DenseSections {
  const DenseFormat* format;
  int codec;
  std::vector<DensePiece> pieces;
  int64_t num_blocks = 0;
};

class DeviceBucket {
 public:
  DeviceBucket(const std::vector<CodecSpec>& codecs, BucketMemory memory,
               const std::vector<Run>& runs, float factor, int rank, CudaWorkspace& workspace);

  const BucketLayout& layout() const { return layout_; }

  // All payloads are in device memory; these calls only enqueue, on the workspace's stream.
  void encode(ElementRange range, std::span<const std::byte* const> received, std::byte* payload,
              const MessageLabel& label);
  void decode(ElementRange range, std::span<const std::byte* const> payloads);

  // The parts of these.
  std::vector<DenseSections> dense_sections(ElementRange range) const;
  void encode_blocks(const DenseSections& sections, int64_t first_block, int64_t end_block,
                     std::span<const std::byte* const> received, std::byte* payload,
                     const MessageLabel& label);
  void decode_blocks(const DenseSections& sections, int64_t first_block, int64_t end_block,
                     std::span<const std::byte* const> payloads);

 private:
  void encode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                     std::span<const std::byte* const> received, std::byte* payload);
  void decode_sparse(ElementRange range, const BucketLayout::SparseSection& section,
                     std::span<const std::byte* const> payloads);
  // Where the sections at `offset` of every payload are.
  std::vector<const std::byte*> sections_at(std::span<const std::byte* const> payloads,
                                            int64_t offset) const;

  BucketLayout layout_;
  BucketMemory memory_;
  float factor_;
  uint32_t rank_;
  std::vector<RotationSignBits> signs_;  // of each codec
  CudaWorkspace& workspace_;
};

}  // namespace fastcomm
