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

}  // namespace

BucketLayout::BucketLayout(const CodecSpec& spec, const BucketMemory& memory,
                           const std::vector<Run>& runs)
    : dense_(spec.name == "topk" ? nullptr : &dense_format(spec.name)),
      plain_(&dense_format("fp32")),
      spec_(spec),
      num_elements_(memory.num_elements) {
  FASTCOMM_CHECK(!is_sparse() || (spec.density > 0 && spec.density <= kLargestSparseDensity),
                 "density " << spec.density << " is outside (0, " << kLargestSparseDensity << "]");
  FASTCOMM_CHECK(!spec.is_stochastic || (!is_sparse() && dense_->has_stochastic_rounding),
                 "codec " << spec.name << " has no stochastic rounding");
  FASTCOMM_CHECK(!spec.is_stochastic || memory.residual == nullptr,
                 "stochastic rounding keeps no residual");
  int64_t begin = 0;
  for (const Run& run : runs) {
    run_begins_.push_back(begin);
    run_compressed_.push_back(run.compressed);
    begin += run.num_elements;
  }
  if (runs.empty()) {
    run_begins_.push_back(0);
    run_compressed_.push_back(true);
    begin = num_elements_;
  }
  run_begins_.push_back(begin);
  FASTCOMM_CHECK(begin == num_elements_,
                 "the runs cover " << begin << " elements of a bucket of " << num_elements_);
}

int64_t BucketLayout::num_compressed(ElementRange range) const {
  int64_t count = 0;
  for_each_piece(range, [&](int64_t begin, int64_t end, bool compressed) {
    if (compressed) count += end - begin;
  });
  return count;
}

BucketLayout::SparseSection BucketLayout::sparse_section(ElementRange range) const {
  const int64_t count = num_compressed(range);
  const int64_t k = topk_count(spec_.density, count);
  return {k, count, topk_section_bytes(k, count)};
}

PayloadFormat BucketLayout::format(ElementRange range) const {
  FASTCOMM_CHECK(
      range.size() <= std::numeric_limits<uint32_t>::max(),
      "a payload of " << range.size() << " elements is too large for its header: cut the tensor");
  const auto num_elements = static_cast<uint32_t>(range.size());
  if (is_sparse()) {
    return {kTopKWireId, static_cast<uint32_t>(sparse_section(range).k), num_elements};
  }
  const auto block_elements = static_cast<uint32_t>(dense_->block_elements);
  return {dense_->wire_id, dense_->is_rotated ? spec_.seed : block_elements, num_elements};
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

BucketShape BucketLayout::shape() const {
  if (is_sparse()) return {num_elements_, 512, kSparseSliceElements, kSparseSliceElements};
  const int64_t bits = 8 * dense_->unit_bytes / dense_->elements_per_unit;
  return {num_elements_, dense_->block_elements,
          align_up(kSmallestSliceBytes * 8 / bits, dense_->block_elements),
          align_up(kLargestSliceBytes * 8 / bits, dense_->block_elements)};
}

std::string BucketLayout::describe() const {
  uint32_t layout = 0;  // of the runs: the sizes alone would not tell two orders apart
  for (size_t run = 0; run < run_compressed_.size(); ++run) {
    const int64_t entry[2] = {run_begins_[run], run_compressed_[run]};
    layout = crc32c(layout, std::as_bytes(std::span(entry)));
  }
  std::ostringstream text;
  if (is_sparse()) {
    text << "topk k=" << sparse_section({0, num_elements_}).k;
  } else {
    text << dense_->name;
    if (dense_->is_rotated) text << " seed=" << spec_.seed;
  }
  text << ", " << num_elements_ << " elements, layout " << std::hex << layout;
  return text.str();
}

int64_t BucketLayout::payload_bytes(ElementRange range) const {
  return for_each_dense_section(range, [](int64_t, int64_t, bool, const DenseFormat&, int64_t) {});
}

}  // namespace fastcomm
