#include "codecs/sparse/selection.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "codecs/payload.h"

namespace fastcomm {
namespace {

constexpr int64_t kSampleRun = 16;       // consecutive elements: one cache line of f32
constexpr int64_t kSampleStride = 1024;  // one run of every 1024 elements
constexpr int kSampleHistogramShift = 15;
constexpr size_t kSampleHistogramBins = size_t{1} << (32 - 1 - kSampleHistogramShift);
constexpr int64_t kSmallestPart = int64_t{1} << 16;  // of a thread
constexpr int64_t kSmallestSampled = 1 << 15;  // below it, every element is a candidate

// A threshold that, judged by a sample, a little more than k of all values exceed.
uint32_t sampled_threshold(DType dtype, std::span<const TopKPiece> pieces, int64_t num_elements,
                           int64_t k, std::vector<uint32_t>& histogram) {
  histogram.assign(kSampleHistogramBins, 0);
  int64_t num_sampled = 0;
  uint64_t random = 0x9e3779b97f4a7c15u;  // Knuth's MMIX generator: any fixed sequence will do
  for (const TopKPiece& piece : pieces) {
    for (int64_t first = 0; first + kSampleStride <= piece.num_elements; first += kSampleStride) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      const int64_t run =
          first + kSampleRun * static_cast<int64_t>((random >> 33) % (kSampleStride / kSampleRun));
      for (int64_t i = run; i < run + kSampleRun; ++i) {
        const float residual = piece.residual != nullptr ? piece.residual[i] : 0.0f;
        const float value = gradient_value(dtype, piece, i) + residual;
        ++histogram[magnitude_bits(value) >> kSampleHistogramShift];
      }
      num_sampled += kSampleRun;
    }
  }
  // Three standard deviations above the expected count: fewer than k candidates are rare.
  const double expected =
      static_cast<double>(k) * static_cast<double>(num_sampled) / static_cast<double>(num_elements);
  const double wanted = expected + 3.0 * std::sqrt(expected) + 4.0;
  double above = 0;
  size_t bin = kSampleHistogramBins - 1;
  for (; bin > 0; --bin) {
    above += histogram[bin];
    if (above >= wanted) break;
  }
  return std::max<uint32_t>(1, static_cast<uint32_t>(bin) << kSampleHistogramShift);
}

// Finds the k-th largest magnitude by three histograms of 11, 11 and 9 bits.
// `for_each(visit)` calls visit(magnitude) for every element. Zeros do not count.
struct Cutoff {
  uint32_t threshold;  // all magnitudes above it are selected
  int64_t num_ties;    // and so many that equal it
};

template <class ForEach>
Cutoff find_cutoff(int64_t k, std::vector<uint32_t>& histogram, ForEach&& for_each) {
  struct Digit {
    int shift, bits;
  };
  uint32_t prefix = 0;
  uint32_t prefix_mask = 0;
  int64_t needed = k;
  for (const Digit digit : {Digit{20, 11}, Digit{9, 11}, Digit{0, 9}}) {
    const uint32_t num_bins = 1u << digit.bits;
    histogram.assign(num_bins, 0);
    for_each([&](uint32_t magnitude) {
      if ((magnitude & prefix_mask) == prefix) {
        ++histogram[(magnitude >> digit.shift) & (num_bins - 1)];
      }
    });
    uint32_t bin = num_bins - 1;
    for (; bin > 0 && histogram[bin] < needed; --bin) needed -= histogram[bin];
    prefix |= bin << digit.shift;
    prefix_mask |= (num_bins - 1) << digit.shift;
  }
  // A threshold of zero: fewer than k magnitudes are above zero; take them all and no ties.
  return {prefix, prefix == 0 ? 0 : needed};
}

}  // namespace

int64_t TopKSelection::find_candidates(const TopKExecution& execution, DType dtype,
                                       std::span<const TopKPiece> pieces, uint32_t threshold,
                                       int64_t capacity) {
  const int64_t num_elements = num_elements_of(pieces);
  const int64_t num_threads = execution.threads == nullptr ? 1 : execution.threads->num_threads();
  const int64_t part_elements =
      std::max(kSmallestPart, align_up((num_elements + num_threads - 1) / num_threads, 64));
  const int64_t num_parts = std::max<int64_t>(1, (num_elements + part_elements - 1) / part_elements);
  if (static_cast<int64_t>(parts_.size()) < num_parts) parts_.resize(static_cast<size_t>(num_parts));

  auto find_in_part = [&](int64_t index) {
    Part& part = parts_[static_cast<size_t>(index)];
    const int64_t begin = index * part_elements;
    const int64_t end = std::min(num_elements, begin + part_elements);
    const auto room = static_cast<size_t>(std::min(capacity, end - begin) + kCandidateSlack);
    if (part.indices.size() < room) {
      part.indices.resize(room);
      part.values.resize(room);
    }
    part.non_finite.clear();
    CandidateBuffer candidates{part.indices.data(), part.values.data(),
                               static_cast<int64_t>(room) - kCandidateSlack, 0, &part.non_finite};
    int64_t first = 0;
    for (const TopKPiece& piece : pieces) {
      const int64_t from = std::max<int64_t>(0, begin - first);
      const int64_t to = std::min(piece.num_elements, end - first);
      if (from < to) {
        const auto* gradient = static_cast<const std::byte*>(piece.gradient) +
                               static_cast<size_t>(from) * dtype_bytes(dtype);
        float* residual = piece.residual == nullptr ? nullptr : piece.residual + from;
        topk_kernels(execution.isa)
            .accumulate(dtype,
                        {gradient, residual, to - from, static_cast<uint32_t>(first + from),
                         threshold},
                        candidates);
      }
      first += piece.num_elements;
    }
    part.count = candidates.count;
  };
  if (num_parts == 1) {
    find_in_part(0);
  } else {
    execution.threads->run(num_parts, find_in_part);
  }

  indices_.clear();
  values_.clear();
  non_finite_.clear();
  int64_t count = 0;
  for (const Part& part : std::span(parts_).first(static_cast<size_t>(num_parts))) {
    const auto stored = std::min<std::ptrdiff_t>(
        part.count, static_cast<std::ptrdiff_t>(part.indices.size()) - kCandidateSlack);
    indices_.insert(indices_.end(), part.indices.begin(), part.indices.begin() + stored);
    values_.insert(values_.end(), part.values.begin(), part.values.begin() + stored);
    non_finite_.insert(non_finite_.end(), part.non_finite.begin(), part.non_finite.end());
    count += part.count;
  }
  return count;
}

void TopKSelection::run(const TopKExecution& execution, DType dtype,
                        std::span<const TopKPiece> pieces, int64_t k) {
  const int64_t num_elements = num_elements_of(pieces);
  const bool is_sampled = num_elements >= kSmallestSampled && k < num_elements / 4;
  const int64_t capacity = is_sampled ? 2 * k + 16384 : num_elements;
  const uint32_t threshold =
      is_sampled ? sampled_threshold(dtype, pieces, num_elements, k, histogram_) : 1;
  const int64_t num_found = find_candidates(execution, dtype, pieces, threshold, capacity);
  count_ = indices_.size();

  const bool is_misjudged = num_found > capacity || (num_found < k && threshold > 1);
  if (is_misjudged || !non_finite_.empty()) {
    select_everywhere(dtype, pieces, k);
  } else {
    refine(pieces, k);
  }
}

void TopKSelection::refine(std::span<const TopKPiece> pieces, int64_t k) {
  if (static_cast<int64_t>(count_) <= k) return;
  const Cutoff cutoff = find_cutoff(k, histogram_, [&](auto&& visit) {
    for (size_t i = 0; i < count_; ++i) visit(magnitude_bits(values_[i]));
  });
  int64_t ties = cutoff.num_ties;
  size_t kept = 0;
  PieceCursor cursor(pieces);
  for (size_t i = 0; i < count_; ++i) {
    const uint32_t magnitude = magnitude_bits(values_[i]);
    const bool is_tie = magnitude == cutoff.threshold;
    const bool is_selected = magnitude > cutoff.threshold || (is_tie && ties > 0);
    ties -= is_tie;
    if (!is_selected) {  // rare: the residual was left as if it were
      cursor.move_to(indices_[i]);
      if (cursor.has_residual()) cursor.residual() = values_[i];
      continue;
    }
    indices_[kept] = indices_[i];
    values_[kept] = values_[i];
    ++kept;
  }
  count_ = kept;
}

void TopKSelection::select_everywhere(DType dtype, std::span<const TopKPiece> pieces, int64_t k) {
  // The pass left the rounding errors of its candidates in the residual: back to the values.
  PieceCursor restored(pieces);
  for (size_t i = 0; i < count_; ++i) {
    restored.move_to(indices_[i]);
    if (restored.has_residual()) restored.residual() = values_[i];
  }
  auto for_each_element = [&](auto&& visit) {
    uint32_t index = 0;
    auto special = non_finite_.begin();
    for (const TopKPiece& piece : pieces) {
      for (int64_t i = 0; i < piece.num_elements; ++i, ++index) {
        while (special != non_finite_.end() && special->index < index) ++special;
        if (special != non_finite_.end() && special->index == index) {
          visit(index, special->value);
        } else {
          visit(index,
                piece.residual != nullptr ? piece.residual[i] : gradient_value(dtype, piece, i));
        }
      }
    }
  };
  // As integers, the magnitudes of Inf and NaN are above those of all finite values.
  const Cutoff cutoff = find_cutoff(k, histogram_, [&](auto&& visit) {
    for_each_element([&](uint32_t, float value) { visit(magnitude_bits(value)); });
  });
  int64_t ties = cutoff.num_ties;
  indices_.clear();
  values_.clear();
  for_each_element([&](uint32_t index, float value) {
    const uint32_t magnitude = magnitude_bits(value);
    if (magnitude < cutoff.threshold || magnitude == 0) return;
    if (magnitude == cutoff.threshold && ties-- <= 0) return;
    indices_.push_back(index);
    values_.push_back(value);
  });
  count_ = indices_.size();
  PieceCursor sent(pieces);
  for (size_t i = 0; i < count_; ++i) {
    if (!is_finite(values_[i])) continue;
    sent.move_to(indices_[i]);
    if (sent.has_residual()) sent.residual() = sent_rounding_error(values_[i]);
  }
}

}  // namespace fastcomm
