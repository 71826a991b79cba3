#include "codecs/sparse/selection.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "codecs/payload.h"

namespace fastcomm {
namespace {

constexpr int64_t kSampleRun = 64;      // consecutive elements: a few cache lines
constexpr double kWantedSample = 3000;  // selected values that a good sample holds
constexpr int kSampleHistogramShift = 15;
constexpr size_t kSampleHistogramBins = size_t{1} << (32 - 1 - kSampleHistogramShift);
constexpr int64_t kSmallestPart = int64_t{1} << 16;  // of a thread
constexpr int64_t kSmallestSampled = 1 << 13;        // below it, every element is a candidate

// Counts one run at a random place of every `stride` elements of a piece; returns how many values
// were counted. The runs of a batch are fetched together: each is a cache miss.
template <class Element>
int64_t sample_piece(const TopKPiece& piece, int64_t stride, uint64_t& random,
                     std::vector<uint32_t>& histogram) {
  constexpr int64_t kBatch = 32;
  const auto* gradient = static_cast<const Element*>(piece.gradient);
  const int64_t num_runs = piece.num_elements / stride;
  const auto places = static_cast<uint64_t>(stride / kSampleRun);
  for (int64_t first = 0; first < num_runs; first += kBatch) {
    const int64_t batch = std::min(kBatch, num_runs - first);
    int64_t runs[kBatch];
    for (int64_t i = 0; i < batch; ++i) {
      random = random * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
      runs[i] = (first + i) * stride + kSampleRun * static_cast<int64_t>((random >> 33) % places);
      for (int64_t line = runs[i]; line < runs[i] + kSampleRun; line += 16) {
        __builtin_prefetch(gradient + line);
        if (piece.residual != nullptr) __builtin_prefetch(piece.residual + line);
      }
    }
    for (int64_t i = 0; i < batch; ++i) {
      for (int64_t element = runs[i]; element < runs[i] + kSampleRun; ++element) {
        float value = to_float(gradient[element]);
        if (piece.residual != nullptr) value += piece.residual[element];
        ++histogram[magnitude_bits(value) >> kSampleHistogramShift];
      }
    }
  }
  return num_runs * kSampleRun;
}

// A threshold that, judged by a sample, a little more than k of all values exceed.
uint32_t sampled_threshold(DType dtype, std::span<const TopKPiece> pieces, int64_t num_elements,
                           int64_t k, std::vector<uint32_t>& histogram) {
  // One of `thinning` values, so that a good sample is drawn, but no more than 1 of 16 values.
  const double thinning = std::clamp(static_cast<double>(k) / kWantedSample, 16.0, 256.0);
  const int64_t stride = kSampleRun * static_cast<int64_t>(thinning);
  histogram.assign(kSampleHistogramBins, 0);
  int64_t num_sampled = 0;
  uint64_t random = 0x9e3779b97f4a7c15u;  // any fixed sequence will do
  for (const TopKPiece& piece : pieces) {
    num_sampled += visit_dtype(dtype, [&](auto element) {
      return sample_piece<decltype(element)>(piece, stride, random, histogram);
    });
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
  const int64_t num_parts =
      std::max<int64_t>(1, (num_elements + part_elements - 1) / part_elements);
  if (static_cast<int64_t>(parts_.size()) < num_parts)
    parts_.resize(static_cast<size_t>(num_parts));

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
            .accumulate(
                dtype,
                {gradient, residual, to - from, static_cast<uint32_t>(first + from), threshold},
                candidates);
      }
      first += piece.num_elements;
    }
    part.num_found = candidates.count;
    part.num_stored = std::min(candidates.count, candidates.capacity);
  };
  if (num_parts == 1) {
    find_in_part(0);
  } else {
    execution.threads->run(num_parts, find_in_part);
  }

  // The first part's arrays become the result's, and the others follow.
  std::swap(indices_, parts_[0].indices);
  std::swap(values_, parts_[0].values);
  std::swap(non_finite_, parts_[0].non_finite);
  count_ = static_cast<size_t>(parts_[0].num_stored);
  int64_t num_found = parts_[0].num_found;
  for (int64_t index = 1; index < num_parts; ++index) {
    const Part& part = parts_[static_cast<size_t>(index)];
    const auto num_stored = static_cast<size_t>(part.num_stored);
    if (indices_.size() < count_ + num_stored) {
      indices_.resize(count_ + num_stored);
      values_.resize(count_ + num_stored);
    }
    std::copy_n(part.indices.begin(), num_stored, indices_.begin() + static_cast<int64_t>(count_));
    std::copy_n(part.values.begin(), num_stored, values_.begin() + static_cast<int64_t>(count_));
    count_ += num_stored;
    non_finite_.insert(non_finite_.end(), part.non_finite.begin(), part.non_finite.end());
    num_found += part.num_found;
  }
  return num_found;
}

void TopKSelection::run(const TopKExecution& execution, DType dtype,
                        std::span<const TopKPiece> pieces, int64_t k) {
  const int64_t num_elements = num_elements_of(pieces);
  const bool is_sampled = num_elements >= kSmallestSampled && k < num_elements / 4;
  const int64_t capacity = is_sampled ? 2 * k + 16384 : num_elements;
  const uint32_t threshold =
      is_sampled ? sampled_threshold(dtype, pieces, num_elements, k, histogram_) : 1;
  const int64_t num_found = find_candidates(execution, dtype, pieces, threshold, capacity);

  const bool is_misjudged = num_found > capacity || (num_found < k && threshold > 1);
  if (is_misjudged || !non_finite_.empty()) {
    select_everywhere(dtype, pieces, k);
  } else {
    refine(pieces, k, threshold);
  }
}

// The candidates are little more than k: the cutoff is near the threshold. A histogram that is fine
// there leaves few candidates to choose among exactly.
void TopKSelection::refine(std::span<const TopKPiece> pieces, int64_t k, uint32_t threshold) {
  if (static_cast<int64_t>(count_) <= k) return;
  constexpr int kShift = 14;  // 512 bins for each power of two
  constexpr uint32_t kLastBin = 2047;
  auto bin_of = [&](float value) {
    return std::min((magnitude_bits(value) - threshold) >> kShift, kLastBin);
  };
  histogram_.assign(kLastBin + 1, 0);
  for (size_t i = 0; i < count_; ++i) ++histogram_[bin_of(values_[i])];
  uint32_t bin = kLastBin;
  int64_t needed = k;
  for (; histogram_[bin] < needed; --bin) needed -= histogram_[bin];
  close_calls_.clear();
  for (size_t i = 0; i < count_; ++i) {
    if (bin_of(values_[i]) == bin) close_calls_.push_back(magnitude_bits(values_[i]));
  }
  const auto last_selected = close_calls_.begin() + (needed - 1);
  std::nth_element(close_calls_.begin(), last_selected, close_calls_.end(), std::greater<>());
  const uint32_t cutoff = *last_selected;
  int64_t ties = needed - std::count_if(close_calls_.begin(), close_calls_.end(),
                                        [&](uint32_t magnitude) { return magnitude > cutoff; });
  size_t kept = 0;
  PieceCursor cursor(pieces);
  const bool has_residual = pieces.front().residual != nullptr;
  left_out_.clear();
  for (size_t i = 0; i < count_; ++i) {
    const uint32_t magnitude = magnitude_bits(values_[i]);
    const bool is_tie = magnitude == cutoff;
    const bool is_selected = magnitude > cutoff || (is_tie && ties > 0);
    ties -= is_tie;
    if (!is_selected) {  // rare: the residual was left as if it were
      if (!has_residual) continue;
      cursor.move_to(indices_[i]);
      left_out_.push_back({&cursor.residual(), values_[i]});
      __builtin_prefetch(left_out_.back().residual, 1);  // a cache miss each
      continue;
    }
    indices_[kept] = indices_[i];
    values_[kept] = values_[i];
    ++kept;
  }
  count_ = kept;
  for (const LeftOut& left_out : left_out_) *left_out.residual = left_out.value;
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
  const auto room = static_cast<size_t>(k);
  if (indices_.size() < room) {
    indices_.resize(room);
    values_.resize(room);
  }
  count_ = 0;
  for_each_element([&](uint32_t index, float value) {
    const uint32_t magnitude = magnitude_bits(value);
    if (magnitude < cutoff.threshold || magnitude == 0) return;
    if (magnitude == cutoff.threshold && ties-- <= 0) return;
    indices_[count_] = index;
    values_[count_] = value;
    ++count_;
  });
  PieceCursor sent(pieces);
  for (size_t i = 0; i < count_; ++i) {
    if (!is_finite(values_[i])) continue;
    sent.move_to(indices_[i]);
    if (sent.has_residual()) sent.residual() = sent_rounding_error(values_[i]);
  }
}

}  // namespace fastcomm
