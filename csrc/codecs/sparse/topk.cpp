#include "codecs/sparse/topk.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codecs/payload.h"

namespace fastcomm {
namespace {

constexpr int64_t kSubBlockElements = 65536;

int64_t num_sub_blocks(int64_t num_elements) {
  return (num_elements + kSubBlockElements - 1) / kSubBlockElements;
}

template <class Byte>
struct SectionView {
  SectionView(Byte* section, int64_t k, int64_t num_elements) : counts(section) {
    counts_end = section + num_sub_blocks(num_elements) * 4;
    offsets = section + align_up(counts_end - section, kSectionAlignment);
    offsets_end = offsets + k * 2;
    values = section + align_up(offsets_end - section, kSectionAlignment);
  }
  Byte *counts, *counts_end, *offsets, *offsets_end, *values;
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

// Calls visit(offset in the sub-block, value) for the entries of one sub-block, starting at entry
// `first`; returns the entry after the last. Checks everything that could lead out of bounds.
template <class Visit>
int64_t for_each_entry(const SectionView<const std::byte>& view, int64_t k, int64_t num_elements,
                       int64_t sub_block, int64_t first, Visit&& visit) {
  const int64_t end = first + load_count(view.counts, sub_block);
  const int64_t limit = std::min(kSubBlockElements, num_elements - sub_block * kSubBlockElements);
  if (end > k) {
    FASTCOMM_THROW(PayloadError, "top-k payload counts " << end << " entries where at most " << k
                                                         << " were announced: it is malformed");
  }
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

// Walks pieces in step with ascending indices.
class PieceCursor {
 public:
  explicit PieceCursor(std::span<const TopKPiece> pieces) : piece_(pieces.begin()) {}
  void move_to(int64_t index) {
    while (index - first_ >= piece_->num_elements) {
      first_ += piece_->num_elements;
      ++piece_;
    }
    offset_ = index - first_;
  }
  float& residual() const { return piece_->residual[offset_]; }
  float gradient(DType dtype) const { return gradient_value(dtype, *piece_, offset_); }

 private:
  std::span<const TopKPiece>::iterator piece_;
  int64_t first_ = 0;
  int64_t offset_ = 0;
};

}  // namespace

int64_t topk_count(double density, int64_t num_elements) {
  if (num_elements == 0) return 0;
  const auto rounded =
      static_cast<int64_t>(std::llround(density * static_cast<double>(num_elements)));
  return std::clamp<int64_t>(rounded, 1, num_elements);
}

int64_t topk_section_bytes(int64_t k, int64_t num_elements) {
  const int64_t counts_bytes = align_up(num_sub_blocks(num_elements) * 4, kSectionAlignment);
  return counts_bytes + 2 * align_up(k * 2, kSectionAlignment);
}

std::span<const TopKPiece> TopKEncoder::with_residuals(std::span<const TopKPiece> pieces,
                                                       int64_t num_elements) {
  if (pieces.empty() || pieces.front().residual != nullptr) return pieces;
  scratch_residual_.assign(static_cast<size_t>(num_elements), 0.0f);
  scratch_pieces_.clear();
  float* next = scratch_residual_.data();
  for (const TopKPiece& piece : pieces) {
    scratch_pieces_.push_back({piece.gradient, next, piece.num_elements});
    next += piece.num_elements;
  }
  return scratch_pieces_;
}

void TopKEncoder::add_received(DType dtype, std::span<const TopKPiece> pieces, int64_t k,
                               int64_t num_elements, std::span<const std::byte> received) {
  const SectionView<const std::byte> in(received.data(), k, num_elements);
  PieceCursor cursor(pieces);
  int64_t entry = 0;
  for (int64_t sub_block = 0; sub_block < num_sub_blocks(num_elements); ++sub_block) {
    int64_t previous = -1;
    entry =
        for_each_entry(in, k, num_elements, sub_block, entry, [&](uint16_t offset, float value) {
          if (offset <= previous) {
            FASTCOMM_THROW(PayloadError, "top-k payload has offset " << offset << " after "
                                                                     << previous
                                                                     << ": it is malformed");
          }
          previous = offset;
          const int64_t index = sub_block * kSubBlockElements + offset;
          cursor.move_to(index);
          const float sum = cursor.residual() + value;
          if (is_finite(sum) && is_finite(sum + cursor.gradient(dtype))) {
            cursor.residual() = sum;
          } else {
            forced_.push_back(static_cast<uint32_t>(index));
            forced_residuals_.push_back(cursor.residual());
          }
        });
  }
}

void TopKEncoder::encode(Isa isa, DType dtype, std::span<const TopKPiece> pieces, int64_t k,
                         std::span<const std::byte> received, std::span<std::byte> section) {
  int64_t num_elements = 0;
  for (const TopKPiece& piece : pieces) num_elements += piece.num_elements;
  forced_.clear();
  forced_residuals_.clear();
  if (!received.empty()) {
    pieces = with_residuals(pieces, num_elements);
    add_received(dtype, pieces, k, num_elements, received);
  }
  selection_.run(isa, dtype, pieces, k, forced_);

  const bool has_residual = !pieces.empty() && pieces.front().residual != nullptr;
  PieceCursor forced_cursor(pieces);
  for (size_t i = 0; i < forced_.size(); ++i) {
    forced_cursor.move_to(forced_[i]);
    forced_cursor.residual() = forced_residuals_[i];
  }

  const SectionView<std::byte> out(section.data(), k, num_elements);
  std::memset(section.data(), 0, section.size());
  PieceCursor cursor(pieces);
  auto* offsets = reinterpret_cast<uint16_t*>(out.offsets);
  auto* values = reinterpret_cast<uint16_t*>(out.values);
  auto* counts = reinterpret_cast<uint32_t*>(out.counts);
  for (size_t entry = 0; entry < selection_.indices().size(); ++entry) {
    const uint32_t index = selection_.indices()[entry];
    const float value = selection_.values()[entry];
    const uint16_t sent = float_to_bf16(value);
    ++counts[index / kSubBlockElements];
    offsets[entry] = static_cast<uint16_t>(index % kSubBlockElements);
    values[entry] = sent;
    if (has_residual && is_finite(value)) {
      cursor.move_to(index);
      cursor.residual() = value - bf16_to_float(sent);
    }
  }
}

void TopKDecoder::decode(Isa isa, DType dtype, std::span<const OutPiece> pieces, int64_t k,
                         float factor, std::span<const std::byte* const> sections) {
  int64_t num_elements = 0;
  for (const OutPiece& piece : pieces) num_elements += piece.num_elements;
  sum_.resize(kSubBlockElements);
  next_entry_.assign(sections.size(), 0);

  // One sub-block at a time: its f32 sum stays in the cache, and the result is written once.
  auto piece = pieces.begin();
  int64_t first_in_piece = 0;
  for (int64_t sub_block = 0; sub_block < num_sub_blocks(num_elements); ++sub_block) {
    const int64_t first = sub_block * kSubBlockElements;
    const int64_t count = std::min(kSubBlockElements, num_elements - first);
    std::fill_n(sum_.begin(), count, 0.0f);
    for (size_t i = 0; i < sections.size(); ++i) {
      const SectionView<const std::byte> in(sections[i], k, num_elements);
      next_entry_[i] = for_each_entry(in, k, num_elements, sub_block, next_entry_[i],
                                      [&](uint16_t offset, float value) { sum_[offset] += value; });
    }
    for (int64_t done = 0; done < count;) {
      const int64_t part = std::min(count - done, piece->num_elements - first_in_piece);
      std::byte* out = static_cast<std::byte*>(piece->out) +
                       static_cast<size_t>(first_in_piece) * dtype_bytes(dtype);
      topk_kernels(isa).write(dtype, sum_.data() + done, factor, out, part);
      done += part;
      first_in_piece += part;
      if (first_in_piece == piece->num_elements) {
        ++piece;
        first_in_piece = 0;
      }
    }
  }
}

}  // namespace fastcomm
