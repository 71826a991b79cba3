#pragma once
// What the payloads of a bucket hold, and where: the same on every rank, wherever its memory is.
//
// A bucket is a sequence of *runs*, contiguous elements that have one codec of the bucket's list:
// int8 for one layer, say, top-k for another, fp32 for small and one-dimensional parameters. The
// body of a payload is, for each sparse codec in the order of the list, a section of all of its
// elements in the range: top-k selects among all that a slice holds. Then comes a section for each
// run of a dense codec that the range touches, in the order of the bucket.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "codecs/bucket.h"
#include "codecs/codec.h"
#include "codecs/dense/kernels.h"

namespace fastcomm {

class BucketLayout {
 public:
  // `runs` cover the bucket; empty: all of it has the only codec of the list. Throws Error if they
  // do not, or if a codec cannot be used this way.
  BucketLayout(const std::vector<CodecSpec>& codecs, const BucketMemory& memory,
               const std::vector<Run>& runs);

  // Of the list, by index.
  const CodecSpec& spec(int codec) const { return codecs_[static_cast<size_t>(codec)].spec; }
  int num_codecs() const { return static_cast<int>(codecs_.size()); }
  int num_sparse_codecs() const;
  bool is_sparse(int codec) const { return dense_of(codec) == nullptr; }
  bool is_rotated(int codec) const { return !is_sparse(codec) && dense_of(codec)->is_rotated; }

  // As those of Codec.
  BucketShape shape() const;
  std::string describe() const;
  int64_t payload_bytes(ElementRange range) const;

  // What the header of a payload of `range` says: of the main codec.
  PayloadFormat format(ElementRange range) const;
  // Throws PayloadError if a payload of `range` is not what its label says.
  void check_payloads(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                      std::span<const MessageLabel> labels) const;
  // Throws PayloadError if a sparse section would lead out of bounds. For payloads of checked size.
  void check_sparse_sections(ElementRange range,
                             std::span<const std::span<const std::byte>> payloads) const;

  // Calls visit(begin, end, codec) for the parts of runs inside `range`.
  template <class Visit>
  void for_each_piece(ElementRange range, Visit&& visit) const {
    if (range.empty()) return;
    auto run =
        static_cast<size_t>(std::upper_bound(run_begins_.begin(), run_begins_.end(), range.begin) -
                            run_begins_.begin() - 1);
    for (; run < run_codecs_.size() && run_begins_[run] < range.end; ++run) {
      const int64_t begin = std::max(range.begin, run_begins_[run]);
      const int64_t end = std::min(range.end, run_begins_[run + 1]);
      if (begin < end) visit(begin, end, run_codecs_[run]);
    }
  }

  // k of the elements of a sparse codec, whose section starts at `offset` of the payload.
  struct SparseSection {
    int codec;
    int64_t k;
    int64_t num_elements;
    int64_t offset;
    int64_t bytes;
  };
  // Calls visit(section) for the sparse codecs that have elements in `range`. Returns where the
  // dense sections start.
  template <class Visit>
  int64_t for_each_sparse_section(ElementRange range, Visit&& visit) const {
    int64_t offset = kHeaderBytes;
    for (int codec = 0; codec < num_codecs(); ++codec) {
      if (!is_sparse(codec)) continue;
      const SparseSection section = sparse_section(codec, range, offset);
      if (section.num_elements > 0) visit(section);
      offset += section.bytes;
    }
    return offset;
  }

  // Calls visit(begin, end, codec, format, offset) for the parts that have a dense section, which
  // starts at `offset` of the payload. Returns the size of the payload.
  template <class Visit>
  int64_t for_each_dense_section(ElementRange range, Visit&& visit) const {
    int64_t offset = for_each_sparse_section(range, [](const SparseSection&) {});
    for_each_piece(range, [&](int64_t begin, int64_t end, int codec) {
      if (is_sparse(codec)) return;
      const DenseFormat& format = *dense_of(codec);
      visit(begin, end, codec, format, offset);
      offset += format.section_bytes(end - begin);
    });
    return offset;
  }

 private:
  struct ListedCodec {
    CodecSpec spec;
    const DenseFormat* dense;  // nullptr: top-k
  };

  const DenseFormat* dense_of(int codec) const { return codecs_[static_cast<size_t>(codec)].dense; }
  bool compresses(int codec) const { return dense_of(codec) != plain_; }
  int64_t count_elements(int codec, ElementRange range) const;
  SparseSection sparse_section(int codec, ElementRange range, int64_t offset) const;
  int find_main_codec() const;
  int64_t alignment() const;
  uint32_t checksum() const;

  const DenseFormat* plain_;  // fp32, which compresses nothing
  std::vector<ListedCodec> codecs_;
  int64_t num_elements_;
  std::vector<int64_t> run_begins_;  // and one past the end
  std::vector<int> run_codecs_;
  // What headers and descriptions name, and slices are cut for: of the codecs that compress, the
  // one with most elements.
  int main_codec_;
};

}  // namespace fastcomm
