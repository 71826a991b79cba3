#include "codecs/bucket_layout.h"

#include <limits>
#include <sstream>

#include "codecs/sparse/topk.h"
#include "core/crc32c.h"

namespace fastcomm {
namespace {

// Payloads of a slice: with less, what gloo does for each message shows.
constexpr int64_t kSmallestSliceBytes = int64_t{1} << 17;
constexpr int64_t kLargestSliceBytes = int64_t{1} << 22;
// Top-k selects within a slice. This is more than DDP's buckets of 25 MB have; of larger ones, one
// slice is on the wire while the next is selected from.
constexpr int64_t kSparseSliceElements = int64_t{1} << 23;
constexpr int64_t kSparseAlignment = 512;

}  // namespace

BucketLayout::BucketLayout(const std::vector<CodecSpec>& codecs, const BucketMemory& memory,
                           const std::vector<Run>& runs)
    : plain_(&dense_format("fp32")), num_elements_(memory.num_elements) {
  FASTCOMM_CHECK(!codecs.empty(), "a bucket has no codec");
  for (const CodecSpec& spec : codecs) {
    const bool is_sparse = spec.name == "topk";
    const DenseFormat* const dense = is_sparse ? nullptr : &dense_format(spec.name);
    FASTCOMM_CHECK(
        !is_sparse || (spec.density > 0 && spec.density <= kLargestSparseDensity),
        "density " << spec.density << " is outside (0, " << kLargestSparseDensity << "]");
    FASTCOMM_CHECK(!spec.is_stochastic || (!is_sparse && dense->has_stochastic_rounding),
                   "codec " << spec.name << " has no stochastic rounding");
    FASTCOMM_CHECK(!spec.is_stochastic || memory.residual == nullptr,
                   "stochastic rounding keeps no residual");
    codecs_.push_back({spec, dense});
  }
  int64_t begin = 0;
  for (const Run& run : runs) {
    FASTCOMM_CHECK(run.codec >= 0 && run.codec < num_codecs(),
                   "a run has codec " << run.codec << " of a list of " << num_codecs());
    run_begins_.push_back(begin);
    run_codecs_.push_back(run.codec);
    begin += run.num_elements;
  }
  if (runs.empty()) {
    FASTCOMM_CHECK(num_codecs() == 1,
                   "a bucket of " << num_codecs() << " codecs has no runs that choose among them");
    run_begins_.push_back(0);
    run_codecs_.push_back(0);
    begin = num_elements_;
  }
  run_begins_.push_back(begin);
  FASTCOMM_CHECK(begin == num_elements_,
                 "the runs cover " << begin << " elements of a bucket of " << num_elements_);
  main_codec_ = find_main_codec();
}

int BucketLayout::num_sparse_codecs() const {
  return static_cast<int>(
      std::ranges::count(codecs_, nullptr, [](const ListedCodec& codec) { return codec.dense; }));
}

int64_t BucketLayout::count_elements(int codec, ElementRange range) const {
  int64_t count = 0;
  for_each_piece(range, [&](int64_t begin, int64_t end, int piece_codec) {
    if (piece_codec == codec) count += end - begin;
  });
  return count;
}

int BucketLayout::find_main_codec() const {
  int found = -1;
  int64_t most = -1;
  for (int codec = 0; codec < num_codecs(); ++codec) {
    if (!compresses(codec)) continue;
    const int64_t count = count_elements(codec, {0, num_elements_});
    if (count <= most) continue;
    most = count;
    found = codec;
  }
  return std::max(found, 0);
}

BucketLayout::SparseSection BucketLayout::sparse_section(int codec, ElementRange range,
                                                         int64_t offset) const {
  const int64_t count = count_elements(codec, range);
  const int64_t k = topk_count(spec(codec).density, count);
  return {codec, k, count, offset, topk_section_bytes(k, count)};
}

PayloadFormat BucketLayout::format(ElementRange range) const {
  FASTCOMM_CHECK(
      range.size() <= std::numeric_limits<uint32_t>::max(),
      "a payload of " << range.size() << " elements is too large for its header: cut the tensor");
  const auto num_elements = static_cast<uint32_t>(range.size());
  if (is_sparse(main_codec_)) {
    const SparseSection section = sparse_section(main_codec_, range, 0);
    return {kTopKWireId, static_cast<uint32_t>(section.k), num_elements};
  }
  const DenseFormat& dense = *dense_of(main_codec_);
  const auto block_elements = static_cast<uint32_t>(dense.block_elements);
  return {dense.wire_id, dense.is_rotated ? spec(main_codec_).seed : block_elements, num_elements};
}

void BucketLayout::check_payloads(ElementRange range,
                                  std::span<const std::span<const std::byte>> payloads,
                                  std::span<const MessageLabel> labels) const {
  const PayloadFormat payload_format = format(range);
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

void BucketLayout::check_sparse_sections(
    ElementRange range, std::span<const std::span<const std::byte>> payloads) const {
  for_each_sparse_section(range, [&](const SparseSection& section) {
    for (const auto& payload : payloads) {
      check_topk_section(payload.data() + section.offset, section.k, section.num_elements);
    }
  });
}

// Of the largest blocks, so that as few as possible are cut. fp32 has none to cut.
int64_t BucketLayout::alignment() const {
  int64_t largest = compresses(main_codec_) ? 0 : plain_->block_elements;
  for (int codec = 0; codec < num_codecs(); ++codec) {
    if (!compresses(codec)) continue;
    const int64_t block = is_sparse(codec) ? kSparseAlignment : dense_of(codec)->block_elements;
    largest = std::max(largest, block);
  }
  return largest;
}

BucketShape BucketLayout::shape() const {
  const int64_t alignment = this->alignment();
  if (num_sparse_codecs() > 0) {
    const int64_t slice = align_up(kSparseSliceElements, alignment);
    return {num_elements_, alignment, slice, slice};
  }
  const DenseFormat& dense = *dense_of(main_codec_);
  const int64_t bits = 8 * dense.unit_bytes / dense.elements_per_unit;
  return {num_elements_, alignment, align_up(kSmallestSliceBytes * 8 / bits, alignment),
          align_up(kLargestSliceBytes * 8 / bits, alignment)};
}

// Of the codecs and the runs: the sizes alone would not tell two orders apart.
uint32_t BucketLayout::checksum() const {
  uint32_t sum = 0;
  const auto add = [&](const auto& value) {
    sum = crc32c(sum, std::as_bytes(std::span(&value, 1)));
  };
  for (const auto& [spec, dense] : codecs_) {
    sum = crc32c(sum, std::as_bytes(std::span(spec.name)));
    add(spec.density);
    add(spec.seed);
    add(spec.is_stochastic);
  }
  for (size_t run = 0; run < run_codecs_.size(); ++run) {
    add(run_begins_[run]);
    add(run_codecs_[run]);
  }
  return sum;
}

std::string BucketLayout::describe() const {
  std::ostringstream text;
  if (is_sparse(main_codec_)) {
    text << "topk k=" << sparse_section(main_codec_, {0, num_elements_}, 0).k;
  } else {
    text << dense_of(main_codec_)->name;
    if (is_rotated(main_codec_)) text << " seed=" << spec(main_codec_).seed;
  }
  int num_others = -1;
  for (int codec = 0; codec < num_codecs(); ++codec) num_others += compresses(codec);
  if (num_others > 0) text << " +" << num_others << " codecs";
  text << ", " << num_elements_ << " elements, layout " << std::hex << checksum();
  return text.str();
}

int64_t BucketLayout::payload_bytes(ElementRange range) const {
  return for_each_dense_section(range, [](int64_t, int64_t, int, const DenseFormat&, int64_t) {});
}

}  // namespace fastcomm
