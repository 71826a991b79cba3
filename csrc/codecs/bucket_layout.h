#pragma once
// What the payloads of a bucket hold, and where: the same on every rank, wherever its memory is.
//
// A bucket is a sequence of *runs*, contiguous elements that are either compressed by the bucket's
// codec or sent as they are (fp32): small and one-dimensional parameters. The body of a payload is
// a section for each run that its range touches, in the order of the bucket; the compressed runs of
// a sparse codec share one section, which comes first: top-k selects among all of them
// that a slice holds.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "codecs/codec.h"
#include "codecs/dense/kernels.h"

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

  void* gradient_at(int64_t element) const {
    return static_cast<std::byte*>(gradient) + static_cast<size_t>(element) * dtype_bytes(dtype);
  }
  float* residual_at(int64_t element) const {
    return residual == nullptr ? nullptr : residual + element;
  }
};

class BucketLayout {
 public:
  // `runs` cover the bucket; empty: all of it is compressed. Throws Error if they do not, or if the
  // codec cannot be used this way.
  BucketLayout(const CodecSpec& spec, const BucketMemory& memory, const std::vector<Run>& runs);

  const CodecSpec& spec() const { return spec_; }
  bool is_sparse() const { return dense_ == nullptr; }
  bool is_rotated() const { return !is_sparse() && dense_->is_rotated; }

  // As those of Codec.
  BucketShape shape() const;
  std::string describe() const;
  int64_t payload_bytes(ElementRange range) const;

  // What the header of a payload of `range` says.
  PayloadFormat format(ElementRange range) const;
  // Throws PayloadError if a payload of `range` is not what its label says.
  void check_payloads(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                      std::span<const MessageLabel> labels) const;

  // The sparse codec's section, which starts at kHeaderBytes: k of the compressed elements.
  struct SparseSection {
    int64_t k;
    int64_t num_elements;
    int64_t bytes;
  };
  SparseSection sparse_section(ElementRange range) const;

  // Calls visit(begin, end, compressed) for the parts of runs inside `range`.
  template <class Visit>
  void for_each_piece(ElementRange range, Visit&& visit) const {
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

  // Calls visit(begin, end, compressed, format, offset) for the parts that have a dense section,
  // which starts at `offset` of the payload. Returns the size of the payload.
  template <class Visit>
  int64_t for_each_dense_section(ElementRange range, Visit&& visit) const {
    int64_t offset = kHeaderBytes + (is_sparse() ? sparse_section(range).bytes : 0);
    for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
      if (compressed && is_sparse()) return;
      const DenseFormat& format = compressed ? *dense_ : *plain_;
      visit(begin, end, compressed, format, offset);
      offset += format.section_bytes(end - begin);
    });
    return offset;
  }

 private:
  int64_t num_compressed(ElementRange range) const;

  const DenseFormat* dense_;  // nullptr: top-k
  const DenseFormat* plain_;  // of the runs that are not compressed
  CodecSpec spec_;
  int64_t num_elements_;
  std::vector<int64_t> run_begins_;  // and one past the end
  std::vector<bool> run_compressed_;
};

}  // namespace fastcomm
