#pragma once
// A gradient bucket with its residual as a Codec: maps ranges of the bucket to sections.
//
// A bucket is a sequence of runs, contiguous elements that are either compressed by the bucket's
// codec or sent as they are (fp32): small and one-dimensional parameters. The body of a payload is
// a section for each run that its range touches, in the order of the bucket; the compressed runs of
// a sparse codec share one section, which comes first: top-k selects among all of them
// that a slice holds.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codecs/codec.h"
#include "codecs/dense/kernels.h"
#include "codecs/sparse/topk.h"
#include "core/thread_pool.h"

namespace fastcomm {

// A codec and its parameters. Parsing of user input is the Python layer's.
struct CodecSpec {
  std::string name;            // a dense codec, or "topk"
  double density = 1.0;        // top-k only, in (0, kLargestSparseDensity]
  bool is_stochastic = false;  // round at random; only for codecs that can, and without residual
  uint32_t seed = 0;           // of the rotation and of stochastic rounding
  bool rotates = true;         // false, in benchmarks: what a rotated codec costs without rotation
};

struct Run {
  int64_t num_elements;
  bool compressed;
};

// Memory of a bucket; must outlive its use. Without error feedback `residual` is nullptr.
struct BucketMemory {
  void* gradient;  // num_elements elements of `dtype`; receives the result
  DType dtype;
  float* residual;  // num_elements
  int64_t num_elements;
};

// Encoding and decoding buffers that outlive a bucket, so that a step allocates nothing.
struct CodecWorkspace {
  // Threads that share the work of one range; nullptr: only the caller's.
  std::shared_ptr<ThreadPool> threads;
  RotationSigns signs;
  TopKEncoder topk_encoder;
  TopKDecoder topk_decoder;
  std::vector<TopKPiece> topk_pieces;
  std::vector<TopKDecoder::OutPiece> topk_out_pieces;
  std::vector<const std::byte*> sections;
};

class BucketCodec final : public Codec {
 public:
  // `runs` cover the bucket; empty: all of it is compressed. `factor` multiplies the decoded sum;
  // `rank` tells the random numbers of ranks apart.
  BucketCodec(const CodecSpec& spec, BucketMemory memory, const std::vector<Run>& runs,
              float factor, int rank, CodecWorkspace& workspace);

  BucketShape shape() const override;
  std::string describe() const override;
  int64_t payload_bytes(ElementRange range) const override;
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
  bool is_sparse() const { return dense_ == nullptr; }
  // The section of [begin, end), at `offset` of every payload.
  void encode_dense(const DenseFormat& format, int64_t begin, int64_t end,
                    std::span<const std::span<const std::byte>> received,
                    std::span<std::byte> payload, int64_t offset, const RoundingNoise* noise);
  void decode_dense(const DenseFormat& format, int64_t begin, int64_t end,
                    std::span<const std::span<const std::byte>> payloads, int64_t offset);
  const RotationSigns* signs() const { return spec_.rotates ? &workspace_.signs : nullptr; }
  // Where the sections at `offset` of every payload are.
  std::span<const std::byte* const> sections_at(
      std::span<const std::span<const std::byte>> payloads, int64_t offset);
  PayloadFormat format(ElementRange range) const;
  // Throws PayloadError if a payload of `range` is not what its label says.
  void check_payloads(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                      std::span<const MessageLabel> labels,
                      const PayloadFormat& payload_format) const;
  int64_t num_compressed(ElementRange range) const;
  void* gradient_at(int64_t element) const;
  float* residual_at(int64_t element) const;
  // Calls visit(begin, end, compressed) for the parts of runs inside `range`.
  template <class Visit>
  void for_each_piece(ElementRange range, Visit&& visit) const;
  const DenseFormat& format_of(bool compressed) const { return compressed ? *dense_ : *plain_; }

  const DenseFormat* dense_;  // nullptr: top-k
  const DenseFormat* plain_;  // of the runs that are not compressed
  CodecSpec spec_;
  BucketMemory memory_;
  std::vector<int64_t> run_begins_;  // and one past the end
  std::vector<bool> run_compressed_;
  float factor_;
  uint32_t rank_;
  Isa isa_;
  CodecWorkspace& workspace_;
};

}  // namespace fastcomm
