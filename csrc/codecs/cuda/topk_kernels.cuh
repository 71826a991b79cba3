#pragma once
// The kernels of the top-k codec on a GPU: what they share, and the functions that enqueue them.
//
// Encoding takes one pass over the elements and a few over the little that this leaves:
//
//   sample      from a histogram of the magnitudes of some elements, derives a threshold that a few
//               more than k elements reach (topk_sample.cu)
//   accumulate  value = gradient + residual; stores the residual and the candidates, and counts
//               these in a histogram of bins (topk_accumulate.cu)
//   cutoff      finds the bin of the cutoff, the cutoff in this bin, and how many elements of each
//               sub-block are above it or ties (topk_cutoff.cu)
//   emit        writes the section, sub-block by sub-block, and stops the velocities of what is in
//               it (topk_emit.cu)
//
//   candidate   an element whose magnitude reaches the threshold; those that are not finite always
//               do, as magnitudes are compared as integers. Its residual is left as if it were
//               selected, which most are.
//   tile        4096 consecutive indices, the work of one block of accumulate. Its candidates are
//               stored side by side, in order of their index; where, depends on which tiles come
//               first, but all that follows walks the tiles in order.
//   sub-block   65536 consecutive indices, as in a section: 16 tiles
//   cutoff      selected are the elements whose magnitude is above the cutoff and, in order of
//               their index, so many of the ties, whose magnitude equals it, that there are k.
//   close call  a candidate in the bin of the cutoff
//
// Where the candidates are fewer than k or do not fit in their arrays, the sample misjudged: the
// cutoff is then searched among all elements, by one block, and emit walks all elements. A tile
// that found no room left its residuals as they were, so that its values can be calculated again;
// in the other tiles, the values are the residuals but for the candidates, which are stored.
//
// Between two calls all counters and histograms are zero: the kernel that uses them last resets
// them. So a call can be captured in a CUDA graph.

#include <cstdint>

#include "codecs/sparse/section.h"
#include "core/cuda.h"
#include "core/dtype.h"

namespace fastcomm::cuda_topk {

inline constexpr int kTileElements = 4096;
inline constexpr int kTilesPerSubBlock = static_cast<int>(kSubBlockElements) / kTileElements;

inline constexpr int kSampleBinShift = 16;
inline constexpr int kSampleBins = 1 << (31 - kSampleBinShift);
// Bins of candidates, from the threshold up: fine where the cutoff is to be expected. Those above
// the last bin are not counted, so that no counter is in great demand.
inline constexpr int kBinShift = 9;
inline constexpr int kBins = 4096;
inline constexpr uint32_t kCloseCallCapacity = 65536;

// Elements of the index space that follow one another in memory. A table of pieces ends with one
// whose first index is the number of elements.
struct Piece {
  void* elements;   // the gradient, or where to decode to
  float* residual;  // nullptr: none
  int64_t first_index;
  float* velocity;  // nullptr: none
};

struct Pieces {
  const Piece* table;
  int32_t count;
  int64_t num_elements;
};

// Where a tile's candidates are stored.
struct TileRecord {
  uint32_t first;  // kNotStored: nowhere, and the residuals are as they were
  uint32_t count;
};
inline constexpr uint32_t kNotStored = 0xffffffffu;

struct Cutoff {
  uint32_t magnitude;
  uint32_t num_ties;      // that are selected
  uint32_t num_selected;  // in all
  bool is_misjudged;      // candidates are not all of the elements that may be selected
};

struct State {
  uint32_t threshold;
  Cutoff cutoff;
  // All zero between two calls:
  uint32_t num_candidates;
  uint32_t num_close_calls;
  uint32_t sample_blocks_done;
  uint32_t cutoff_blocks_done;
  alignas(16) uint32_t bins[kBins];
  alignas(16) uint32_t sample_bins[kSampleBins];
};

// A received value made these elements' sums not finite: their residual is NaN until emit restores
// it. Each sub-block has a range of the array of them.
struct SavedResidual {
  uint32_t index;
  float residual;
};
struct SavedRange {
  uint64_t first;
  uint64_t count;
};

struct EncodeCall {
  Pieces pieces;
  DType dtype;
  bool has_residual;
  bool has_velocity;
  bool is_sampled;  // else the threshold is 1: all but zeros are candidates
  const uint32_t* failed;
  uint32_t k;
  uint32_t capacity;  // of the arrays of candidates
  State* state;
  TileRecord* tiles;
  uint32_t* candidate_indices;
  float* candidate_values;
  uint2* close_calls;   // index, magnitude
  uint32_t* num_above;  // for each sub-block: magnitudes above the cutoff,
  uint32_t* num_ties;   // ties,
  uint2* num_before;    // and how many of both are in the sub-blocks before; also one past the last
  SavedResidual* saved;
  SavedRange* saved_ranges;  // nullptr: nothing was received
  std::byte* section;
  TopKSectionLayout layout;
};

struct ReceivedCall {
  Pieces pieces;
  DType dtype;
  const uint32_t* failed;
  int64_t num_sections;
  const std::byte* const* sections;
  const uint32_t* first_entries;
  SavedResidual* saved;
  SavedRange* saved_ranges;
  TopKSectionLayout layout;
};

struct DecodeCall {
  Pieces pieces;
  const uint32_t* failed;
  float factor;
  int64_t num_sections;
  const std::byte* const* sections;
  const uint32_t* first_entries;
  TopKSectionLayout layout;
};

void enqueue_sample(const EncodeCall& call, cudaStream_t stream);
void enqueue_accumulate(const EncodeCall& call, cudaStream_t stream);
void enqueue_cutoff(const EncodeCall& call, cudaStream_t stream);
void enqueue_emit(const EncodeCall& call, cudaStream_t stream);

// For each section and sub-block, and one past the last: the first of its entries; at most k,
// whatever the section's counts say.
void enqueue_first_entries(const std::byte* const* sections, int64_t num_sections, int64_t k,
                           const TopKSectionLayout& layout, uint32_t* first_entries,
                           cudaStream_t stream);
void enqueue_add_received(const ReceivedCall& call, cudaStream_t stream);
void enqueue_decode(DType dtype, const DecodeCall& call, cudaStream_t stream);

}  // namespace fastcomm::cuda_topk
