#include "codecs/sparse/selection.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace fastcomm {
namespace {

constexpr int64_t kSampleRun = 16;       // consecutive elements: one cache line of f32
constexpr int64_t kSampleStride = 1024;  // one run of every 1024 elements
constexpr int kSampleHistogramShift = 15;
constexpr size_t kSampleHistogramBins = size_t{1} << (32 - 1 - kSampleHistogramShift);
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

float gradient_value(DType dtype, const TopKPiece& piece, int64_t i) {
  return visit_dtype(dtype, [&](auto element) {
    return to_float(static_cast<const decltype(element)*>(piece.gradient)[i]);
  });
}

void TopKSelection::run(Isa isa, DType dtype, std::span<const TopKPiece> pieces, int64_t k,
                        std::span<const uint32_t> forced) {
  int64_t num_elements = 0;
  for (const TopKPiece& piece : pieces) num_elements += piece.num_elements;
  const bool is_sampled = num_elements >= kSmallestSampled && k < num_elements / 4;
  const int64_t capacity = is_sampled ? 2 * k + 16384 : num_elements;
  const uint32_t threshold =
      is_sampled ? sampled_threshold(dtype, pieces, num_elements, k, histogram_) : 1;
  if (static_cast<int64_t>(indices_.size()) < capacity + kCandidateSlack) {
    indices_.resize(static_cast<size_t>(capacity + kCandidateSlack));
    values_.resize(indices_.size());
  }

  non_finite_.clear();
  CandidateBuffer candidates{indices_.data(), values_.data(), capacity, 0, &non_finite_};
  uint32_t first_index = 0;
  for (const TopKPiece& piece : pieces) {
    topk_kernels(isa).accumulate(
        dtype, {piece.gradient, piece.residual, piece.num_elements, first_index, threshold},
        candidates);
    first_index += static_cast<uint32_t>(piece.num_elements);
  }

  const bool is_misjudged = candidates.count > capacity || (candidates.count < k && threshold > 1);
  if (is_misjudged || !non_finite_.empty() || !forced.empty()) {
    for (uint32_t index : forced) {
      non_finite_.push_back({index, std::numeric_limits<float>::quiet_NaN()});
    }
    // An element that is both comes twice, NaN first: the second is skipped.
    std::stable_sort(non_finite_.begin(), non_finite_.end(), [](const auto& a, const auto& b) {
      return a.index != b.index ? a.index < b.index
                                : magnitude_bits(a.value) > magnitude_bits(b.value);
    });
    select_everywhere(dtype, pieces, k);
  } else {
    count_ = static_cast<size_t>(candidates.count);
    refine(k);
  }
}

void TopKSelection::refine(int64_t k) {
  if (static_cast<int64_t>(count_) <= k) return;
  const Cutoff cutoff = find_cutoff(k, histogram_, [&](auto&& visit) {
    for (size_t i = 0; i < count_; ++i) visit(magnitude_bits(values_[i]));
  });
  int64_t ties = cutoff.num_ties;
  size_t kept = 0;
  for (size_t i = 0; i < count_; ++i) {
    const uint32_t magnitude = magnitude_bits(values_[i]);
    const bool is_tie = magnitude == cutoff.threshold;
    const bool is_selected = magnitude > cutoff.threshold || (is_tie && ties > 0);
    ties -= is_tie;
    indices_[kept] = indices_[i];
    values_[kept] = values_[i];
    kept += is_selected;
  }
  count_ = kept;
}

// Runs after the pass: the residual, where there is one, already holds the values that are finite.
void TopKSelection::select_everywhere(DType dtype, std::span<const TopKPiece> pieces, int64_t k) {
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
  count_ = 0;
  for_each_element([&](uint32_t index, float value) {
    const uint32_t magnitude = magnitude_bits(value);
    if (magnitude < cutoff.threshold || magnitude == 0) return;
    if (magnitude == cutoff.threshold && ties-- <= 0) return;
    indices_[count_] = index;
    values_[count_] = value;
    ++count_;
  });
}

}  // namespace fastcomm
