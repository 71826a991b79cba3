// The section: the selected elements of each sub-block, in order of their index, by one block.

#include "codecs/cuda/topk_device.cuh"

namespace fastcomm::cuda_topk {
namespace {

constexpr int kThreads = 256;

struct EmitShared {
  float tile[kTileElements];
  SubBlockCandidates candidates;
};

struct SectionPointers {
  __device__ __forceinline__ SectionPointers(std::byte* section, const TopKSectionLayout& layout)
      : counts(reinterpret_cast<uint32_t*>(section)),
        offsets(reinterpret_cast<uint16_t*>(section + layout.offsets)),
        values(reinterpret_cast<uint16_t*>(section + layout.values)) {}
  uint32_t* counts;
  uint16_t* offsets;
  uint16_t* values;
};

// Selects from elements that come in order of their index, and writes the entries.
class Emission {
 public:
  __device__ __forceinline__ Emission(const EncodeCall& call, int64_t sub_block)
      : call_(call), section_(call.section, call.layout), cutoff_(call.state->cutoff) {
    const uint2 before = call.num_before[sub_block];
    const uint32_t num_ties = before.y < cutoff_.num_ties ? before.y : cutoff_.num_ties;
    next_entry_ = before.x + num_ties;
    ties_left_ = cutoff_.num_ties - num_ties;
  }

  // For all threads of the block, each with the next element, or with a value of 0 for none.
  // Returns whether it is selected.
  __device__ __forceinline__ bool emit(uint32_t index, float value) {
    const uint32_t magnitude = magnitude_bits(value);
    const bool is_above = magnitude > cutoff_.magnitude;
    const bool is_tie = magnitude == cutoff_.magnitude;
    constexpr int kTieShift = 16;
    const auto sum = block_sum(uint32_t{is_above} | uint32_t{is_tie} << kTieShift);
    const uint32_t ties_before = selected_ties(sum.before >> kTieShift);
    const uint32_t entry = next_entry_ + (sum.before & 0xffffu) + ties_before;
    const bool is_selected = is_above || (is_tie && ties_before < ties_left_);
    // The second condition holds, unless `failed` was set meanwhile.
    if (is_selected && entry < call_.k) {
      section_.offsets[entry] = static_cast<uint16_t>(index % kSubBlockElements);
      section_.values[entry] = float_to_bf16(value);
      if (call_.has_velocity && is_finite(value)) *velocity_of(call_.pieces, index) = 0;
    }
    const uint32_t num_ties = selected_ties(sum.total >> kTieShift);
    next_entry_ += (sum.total & 0xffffu) + num_ties;
    ties_left_ -= num_ties;
    return is_selected;
  }

 private:
  __device__ __forceinline__ uint32_t selected_ties(uint32_t num_ties) const {
    return num_ties < ties_left_ ? num_ties : ties_left_;
  }

  const EncodeCall& call_;
  SectionPointers section_;
  Cutoff cutoff_;
  uint32_t next_entry_;
  uint32_t ties_left_;
};

// Where a value is not finite, the residual stays as it is.
__device__ __forceinline__ void store_residual(const EncodeCall& call, uint32_t index, float value,
                                               bool is_selected = false) {
  if (!call.has_residual || !is_finite(value)) return;
  *residual_of(call.pieces, index) = is_selected ? sent_rounding_error(value) : value;
}

__device__ __forceinline__ void emit_candidates(const EncodeCall& call, Emission& emission,
                                                SubBlockCandidates& candidates) {
  candidates.load(call, blockIdx.x);
  for (uint32_t first = 0; first < candidates.count; first += kThreads) {
    const uint32_t i = first + threadIdx.x;
    uint32_t index = 0;
    float value = 0;
    if (i < candidates.count) {
      const uint32_t place = candidates.place(i);
      index = call.candidate_indices[place];
      value = call.candidate_values[place];
    }
    const bool is_selected = emission.emit(index, value);
    // accumulate left the residual as if it were.
    if (i < candidates.count && !is_selected) store_residual(call, index, value);
  }
}

__device__ __forceinline__ void emit_elements(const EncodeCall& call, Emission& emission,
                                              float* values) {
  const int64_t first_tile = int64_t{blockIdx.x} * kTilesPerSubBlock;
  for (int64_t tile = first_tile; tile < first_tile + kTilesPerSubBlock; ++tile) {
    if (tile * kTileElements >= call.pieces.num_elements) break;
    const int count = load_tile(call, tile, values);
    for (int first = 0; first < count; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const auto index = static_cast<uint32_t>(tile * kTileElements + i);
      const float value = i < count ? values[i] : 0.0f;
      const bool is_selected = emission.emit(index, value);
      if (i < count) store_residual(call, index, value, is_selected);
    }
  }
}

// What no entry is in, and the padding.
__device__ __forceinline__ void write_zeros(const EncodeCall& call) {
  const SectionPointers section(call.section, call.layout);
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t num_threads = int64_t{gridDim.x} * kThreads;
  const int64_t num_entries = (call.layout.end - call.layout.values) / 2;
  for (int64_t i = call.state->cutoff.num_selected + first; i < num_entries; i += num_threads) {
    section.offsets[i] = 0;
    section.values[i] = 0;
  }
  const int64_t i = call.layout.num_sub_blocks + first;
  if (i < call.layout.offsets / 4) section.counts[i] = 0;
}

__global__ void __launch_bounds__(kThreads, 4) emit_kernel(EncodeCall call) {
  __shared__ EmitShared shared;
  Emission emission(call, blockIdx.x);
  if (call.state->cutoff.is_misjudged) {
    emit_elements(call, emission, shared.tile);
  } else {
    emit_candidates(call, emission, shared.candidates);
  }
  write_zeros(call);
  if (threadIdx.x == 0) {
    const uint32_t num_ties = call.state->cutoff.num_ties;
    const uint2 before = call.num_before[blockIdx.x];
    const uint2 end = call.num_before[blockIdx.x + 1];
    const uint32_t ties_before = before.y < num_ties ? before.y : num_ties;
    const uint32_t ties_end = end.y < num_ties ? end.y : num_ties;
    reinterpret_cast<uint32_t*>(call.section)[blockIdx.x] =
        end.x + ties_end - before.x - ties_before;
  }
  if (call.saved_ranges != nullptr) {
    // These elements' residuals have been read as NaN, before a barrier of emit_elements.
    const SavedRange range = call.saved_ranges[blockIdx.x];
    for (uint64_t i = threadIdx.x; i < range.count; i += kThreads) {
      const SavedResidual saved = call.saved[range.first + i];
      *residual_of(call.pieces, saved.index) = saved.residual;
    }
  }
  for (int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x); i < kBins;
       i += static_cast<int>(gridDim.x) * kThreads) {
    call.state->bins[i] = 0;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) call.state->num_candidates = 0;
}

}  // namespace

void enqueue_emit(const EncodeCall& call, cudaStream_t stream) {
  launch(emit_kernel, call.layout.num_sub_blocks, kThreads, stream, call);
}

}  // namespace fastcomm::cuda_topk
