#include "codecs/sparse/topk.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "codecs/sparse/section.h"

namespace fastcomm {
namespace {

constexpr int64_t kSmallestStreamed = int64_t{1} << 18;  // elements of a result; see core/loops.inl

int64_t num_sub_blocks(int64_t num_elements) {
  return TopKSectionLayout(0, num_elements).num_sub_blocks;
}

template <class Byte>
struct SectionView {
  SectionView(Byte* section, int64_t k, int64_t num_elements) : counts(section) {
    const TopKSectionLayout layout(k, num_elements);
    offsets = section + layout.offsets;
    values = section + layout.values;
  }
  Byte *counts, *offsets, *values;
};

uint32_t load_count(const std::byte* counts, int64_t sub_block) {
  uint32_t count;
  std::memcpy(&count, counts + sub_block * 4, sizeof count);
  return count;
}

uint16_t load_u16(const std::byte* entries, int64_t entry) {
  uint16_t value;
  std::memcpy(&value, entries + entry * 2, sizeof value);
  return value;
}

void check_count(int64_t count, int64_t k) {
  if (count <= k) return;
  FASTCOMM_THROW(PayloadError, "top-k payload counts " << count << " entries where at most " << k
                                                       << " were announced: it is malformed");
}

// Calls visit(offset in the sub-block, value) for the entries of one sub-block, starting at entry
// `first`; returns the entry after the last. Checks everything that could lead out of bounds.
template <class Visit>
int64_t for_each_entry(const SectionView<const std::byte>& view, int64_t k, int64_t num_elements,
                       int64_t sub_block, int64_t first, Visit&& visit) {
  const int64_t end = first + load_count(view.counts, sub_block);
  const int64_t limit = std::min(kSubBlockElements, num_elements - sub_block * kSubBlockElements);
  check_count(end, k);
  for (int64_t entry = first; entry < end; ++entry) {
    const uint16_t offset = load_u16(view.offsets, entry);
    if (offset >= limit) {
      FASTCOMM_THROW(PayloadError, "top-k payload has offset " << offset << " in a sub-block of "
                                                               << limit
                                                               << " elements: it is malformed");
    }
    visit(offset, bf16_to_float(load_u16(view.values, entry)));
  }
  return end;
}

}  // namespace

int64_t topk_count(double density, int64_t num_elements) {
  if (num_elements == 0) return 0;
  const auto rounded =
      static_cast<int64_t>(std::llround(density * static_cast<double>(num_elements)));
  return std::clamp<int64_t>(rounded, 1, num_elements);
}

int64_t topk_section_bytes(int64_t k, int64_t num_elements) {
  return TopKSectionLayout(k, num_elements).end;
}

void check_topk_section(const std::byte* section, int64_t k, int64_t num_elements) {
  const SectionView<const std::byte> view(section, k, num_elements);
  int64_t entry = 0;
  for (int64_t sub_block = 0; sub_block < num_sub_blocks(num_elements); ++sub_block) {
    int64_t previous = -1;
    entry = for_each_entry(view, k, num_elements, sub_block, entry, [&](uint16_t offset, float) {
      if (offset <= previous) {
        FASTCOMM_THROW(PayloadError, "top-k payload has offset " << offset << " after " << previous
                                                                 << ": it is malformed");
      }
      previous = offset;
    });
  }
}

std::span<const TopKPiece> TopKEncoder::with_residuals(std::span<const TopKPiece> pieces) {
  if (pieces.empty() || pieces.front().residual != nullptr) return pieces;
  scratch_residual_.assign(static_cast<size_t>(num_elements_of(pieces)), 0.0f);
  scratch_pieces_.clear();
  float* next = scratch_residual_.data();
  for (const TopKPiece& piece : pieces) {
    scratch_pieces_.push_back({piece.gradient, next, piece.num_elements, piece.velocity});
    next += piece.num_elements;
  }
  return scratch_pieces_;
}

void TopKEncoder::add_received(DType dtype, std::span<const TopKPiece> pieces, int64_t k,
                               const std::byte* received) {
  const int64_t num_elements = num_elements_of(pieces);
  const SectionView<const std::byte> in(received, k, num_elements);
  PieceCursor cursor(pieces);
  int64_t entry = 0;
  for (int64_t sub_block = 0; sub_block < num_sub_blocks(num_elements); ++sub_block) {
    entry =
        for_each_entry(in, k, num_elements, sub_block, entry, [&](uint16_t offset, float value) {
          const int64_t index = sub_block * kSubBlockElements + offset;
          cursor.move_to(index);
          float& residual = cursor.residual();
          const float sum = residual + value;
          if (!is_finite(residual)) return;  // saved already, because of another received section
          if (is_finite(sum) && is_finite(sum + cursor.gradient(dtype))) {
            residual = sum;
          } else {
            // Selected as NaN, and put back afterwards.
            saved_.push_back({index, residual});
            residual = std::numeric_limits<float>::quiet_NaN();
          }
        });
  }
}

void TopKEncoder::mask_velocities(std::span<const TopKPiece> pieces) const {
  if (pieces.empty() || pieces.front().velocity == nullptr) return;
  PieceCursor cursor(pieces);
  for (size_t entry = 0; entry < selection_.indices().size(); ++entry) {
    if (!is_finite(selection_.values()[entry])) continue;
    cursor.move_to(selection_.indices()[entry]);
    cursor.velocity() = 0;
  }
}

void TopKEncoder::encode(const TopKExecution& execution, DType dtype,
                         std::span<const TopKPiece> pieces, int64_t k,
                         std::span<const std::byte* const> received, std::span<std::byte> section) {
  saved_.clear();
  // All of them first: an error leaves the residuals as they were.
  const int64_t num_elements = num_elements_of(pieces);
  for (const std::byte* payload : received) {
    check_topk_section(payload, k, num_elements);
  }
  if (!received.empty()) pieces = with_residuals(pieces);
  for (const std::byte* payload : received) add_received(dtype, pieces, k, payload);
  selection_.run(execution, dtype, pieces, k);
  std::sort(saved_.begin(), saved_.end(),
            [](const auto& a, const auto& b) { return a.index < b.index; });
  PieceCursor cursor(pieces);
  for (const SavedResidual& saved : saved_) {
    cursor.move_to(saved.index);
    cursor.residual() = saved.residual;
  }
  mask_velocities(pieces);

  const SectionView<std::byte> out(section.data(), k, num_elements_of(pieces));
  std::memset(section.data(), 0, section.size());
  auto* offsets = reinterpret_cast<uint16_t*>(out.offsets);
  auto* values = reinterpret_cast<uint16_t*>(out.values);
  auto* counts = reinterpret_cast<uint32_t*>(out.counts);
  const std::span<const uint32_t> indices = selection_.indices();
  for (size_t entry = 0; entry < indices.size(); ++entry) {
    offsets[entry] = static_cast<uint16_t>(indices[entry] % kSubBlockElements);
    values[entry] = float_to_bf16(selection_.values()[entry]);
  }
  auto first = indices.begin();
  for (int64_t sub_block = 0; first != indices.end(); ++sub_block) {
    const auto end = std::lower_bound(first, indices.end(), (sub_block + 1) * kSubBlockElements);
    counts[sub_block] = static_cast<uint32_t>(end - first);
    first = end;
  }
}

void TopKDecoder::decode(const TopKExecution& execution, DType dtype,
                         std::span<const OutPiece> pieces, int64_t k, float factor,
                         std::span<const std::byte* const> sections) {
  int64_t num_elements = 0;
  for (const OutPiece& piece : pieces) num_elements += piece.num_elements;
  const auto num_blocks = static_cast<size_t>(num_sub_blocks(num_elements));
  first_entries_.resize(sections.size() * num_blocks);
  for (size_t i = 0; i < sections.size(); ++i) {
    const SectionView<const std::byte> in(sections[i], k, num_elements);
    int64_t entry = 0;
    for (size_t block = 0; block < num_blocks; ++block) {
      first_entries_[i * num_blocks + block] = entry;
      entry += load_count(in.counts, static_cast<int64_t>(block));
      check_count(entry, k);  // here, so that the error is the same whatever the threads do
    }
  }

  const bool streams = num_elements >= kSmallestStreamed;
  // One sub-block at a time: its f32 sum stays in the cache, and the result is written once.
  auto decode_block = [&](int64_t block, float* sum) {
    const int64_t first = block * kSubBlockElements;
    const int64_t count = std::min(kSubBlockElements, num_elements - first);
    std::fill_n(sum, count, 0.0f);
    for (size_t i = 0; i < sections.size(); ++i) {
      const SectionView<const std::byte> in(sections[i], k, num_elements);
      for_each_entry(in, k, num_elements, block,
                     first_entries_[i * num_blocks + static_cast<size_t>(block)],
                     [&](uint16_t offset, float value) { sum[offset] += value; });
    }
    int64_t piece_first = 0;
    for (const OutPiece& piece : pieces) {
      const int64_t begin = std::max(first, piece_first);
      const int64_t end = std::min(first + count, piece_first + piece.num_elements);
      if (begin < end) {
        std::byte* out = static_cast<std::byte*>(piece.out) +
                         static_cast<size_t>(begin - piece_first) * dtype_bytes(dtype);
        topk_kernels(execution.isa)
            .write(dtype, sum + (begin - first), factor, streams, out, end - begin);
      }
      piece_first += piece.num_elements;
    }
  };
  run_in_parts(execution.threads, static_cast<int64_t>(num_blocks), 1,
               [&](int64_t begin, int64_t end) {
                 // Kept from call to call: a step allocates nothing.
                 thread_local std::vector<float> sum(kSubBlockElements);
                 for (int64_t block = begin; block < end; ++block) decode_block(block, sum.data());
               });
}

}  // namespace fastcomm
