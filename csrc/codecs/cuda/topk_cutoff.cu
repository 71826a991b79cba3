// The cutoff, and how many elements of each sub-block are above it or ties.
//
// Each block finds the bin of the cutoff in the histogram, counts what is above this bin in its
// sub-block, and lists the close calls. The last block to finish then finds the cutoff among them,
// digit by digit.

#include "codecs/cuda/topk_device.cuh"

namespace fastcomm::cuda_topk {
namespace {

constexpr int kThreads = 512;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;

// The magnitudes from `low` to below `end`, one of which is the cutoff.
struct Bin {
  uint32_t low;
  uint32_t end;
  uint32_t num_bits;  // of magnitude - low
  uint32_t needed;    // the cutoff is the needed-th largest in here; 0: all candidates are selected
};

struct CutoffShared {
  alignas(16) uint32_t digit_counts[kDigits];
  float tile[kTileElements];
  SubBlockCandidates candidates;
};

__device__ __forceinline__ bool is_misjudged(const EncodeCall& call, uint32_t threshold,
                                             uint32_t num_candidates) {
  return num_candidates > call.capacity || (num_candidates < call.k && threshold > 1);
}

__device__ __forceinline__ Bin find_bin_of_cutoff(const EncodeCall& call, uint32_t threshold,
                                                  uint32_t num_candidates) {
  const auto* quads = reinterpret_cast<const uint4*>(call.state->bins);
  constexpr int kQuads = kBins / 4 / kThreads;
  if (num_candidates <= call.k) return {threshold, threshold, 0, 0};
  uint32_t counted = 0;
  for (int i = 0; i < kQuads; ++i) {
    const uint4 quad = quads[static_cast<int>(threadIdx.x) + i * kThreads];
    counted += quad.x + quad.y + quad.z + quad.w;
  }
  const uint32_t num_uncounted = num_candidates - block_sum(counted).total;
  if (call.k <= num_uncounted) {
    return {threshold + ((kBins - 1) << kBinShift), kMagnitudeMask + 1, 31, call.k};
  }
  const FoundBin found =
      find_bin<kQuads>(call.k - num_uncounted, [&](uint32_t i) { return quads[i]; });
  const uint32_t low = threshold + (found.bin << kBinShift);
  return {low, low + (1u << kBinShift), kBinShift, found.needed};
}

// Adds `is_one` of the warp's lanes to a counter; returns the count of those before.
__device__ __forceinline__ uint32_t count_in_warp(uint32_t* counter, bool is_one) {
  const unsigned lanes = __ballot_sync(kAllLanes, is_one);
  uint32_t before = 0;
  if (lanes != 0 && lane_of_thread() == 0) {
    before = atomicAdd(counter, static_cast<uint32_t>(__popc(lanes)));
  }
  before = __shfl_sync(kAllLanes, before, 0);
  return before + static_cast<uint32_t>(__popc(lanes & ((1u << lane_of_thread()) - 1)));
}

__device__ __forceinline__ uint32_t count_sub_block(const EncodeCall& call, const Bin& bin,
                                                    SubBlockCandidates& candidates) {
  candidates.load(call, blockIdx.x);
  uint32_t num_above = 0;
  for (uint32_t first = 0; first < candidates.count; first += kThreads) {
    const uint32_t i = first + threadIdx.x;
    uint32_t place = 0;
    uint32_t magnitude = 0;
    if (i < candidates.count) {
      place = candidates.place(i);
      magnitude = magnitude_bits(call.candidate_values[place]);
    }
    num_above += magnitude >= bin.end;
    const bool is_close = magnitude >= bin.low && magnitude < bin.end;
    const uint32_t close_call = count_in_warp(&call.state->num_close_calls, is_close);
    if (is_close && close_call < kCloseCallCapacity) {
      call.close_calls[close_call] = make_uint2(call.candidate_indices[place], magnitude);
    }
  }
  return block_sum(num_above).total;
}

// Calls visit(index, magnitude) in the threads of the block, for elements that hold all those in
// the bin.
template <class Visit>
__device__ __forceinline__ void for_each_close_call(const EncodeCall& call,
                                                    uint32_t num_close_calls,
                                                    uint32_t num_candidates, Visit&& visit) {
  if (num_close_calls <= kCloseCallCapacity) {
    for (uint32_t i = threadIdx.x; i < num_close_calls; i += kThreads) {
      const uint2 close_call = __ldcg(call.close_calls + i);
      visit(close_call.x, close_call.y);
    }
  } else {  // many ties
    for (uint32_t i = threadIdx.x; i < num_candidates; i += kThreads) {
      visit(call.candidate_indices[i], magnitude_bits(call.candidate_values[i]));
    }
  }
}

template <class Visit>
__device__ __forceinline__ void for_each_element(const EncodeCall& call, float* values,
                                                 Visit&& visit) {
  for (int64_t tile = 0; tile * kTileElements < call.pieces.num_elements; ++tile) {
    const int count = load_tile(call, tile, values);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      visit(static_cast<uint32_t>(tile * kTileElements + i), magnitude_bits(values[i]));
    }
  }
}

// Finds the cutoff in the bin, and counts the elements above it and the ties that are in the bin.
// for_each(visit) calls visit(index, magnitude) for these, and perhaps others, but not for zeros.
template <class ForEach>
__device__ __forceinline__ Cutoff find_cutoff(const EncodeCall& call, const Bin& bin,
                                              uint32_t* digit_counts, ForEach&& for_each) {
  uint32_t prefix = 0;  // the upper digits of the cutoff - bin.low
  uint32_t needed = bin.needed;
  for (uint32_t bits_left = bin.num_bits; bits_left > 0 && needed > 0;) {
    const uint32_t num_bits = bits_left < kDigitBits ? bits_left : kDigitBits;
    const uint32_t shift = bits_left - num_bits;
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) digit_counts[i] = 0;
    __syncthreads();
    for_each([&](uint32_t, uint32_t magnitude) {
      const uint32_t digits = (magnitude - bin.low) >> shift;
      if (magnitude >= bin.low && magnitude < bin.end && digits >> num_bits == prefix) {
        atomicAdd(&digit_counts[digits & ((1u << num_bits) - 1)], 1u);
      }
    });
    __syncthreads();
    const auto* quads = reinterpret_cast<const uint4*>(digit_counts);
    const FoundBin found =
        find_bin<kDigits / 4 / kThreads>(needed, [&](uint32_t i) { return quads[i]; });
    prefix = prefix << num_bits | found.bin;
    needed = found.needed;
    bits_left = shift;
  }
  // Fewer than needed: all of them are selected, and no ties.
  const uint32_t cutoff = needed > 0 ? bin.low + prefix : bin.low - 1;
  for_each([&](uint32_t index, uint32_t magnitude) {
    if (magnitude >= bin.end || magnitude < cutoff || magnitude < bin.low) return;
    uint32_t* counts = magnitude == cutoff ? call.num_ties : call.num_above;
    atomicAdd(&counts[index / kSubBlockElements], 1u);
  });
  __syncthreads();
  return {cutoff, needed, 0, false};
}

// Sums the counts of the sub-blocks before each; returns those of all.
__device__ __forceinline__ uint2 sum_sub_blocks(const EncodeCall& call) {
  uint2 sum = make_uint2(0, 0);
  const int64_t num_sub_blocks = call.layout.num_sub_blocks;
  for (int64_t first = 0; first < num_sub_blocks; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const bool is_inside = i < num_sub_blocks;
    const auto above = block_sum<uint32_t>(is_inside ? __ldcg(call.num_above + i) : 0);
    const auto ties = block_sum<uint32_t>(is_inside ? __ldcg(call.num_ties + i) : 0);
    if (is_inside) call.num_before[i] = make_uint2(sum.x + above.before, sum.y + ties.before);
    sum.x += above.total;
    sum.y += ties.total;
  }
  if (threadIdx.x == 0) call.num_before[num_sub_blocks] = sum;
  return sum;
}

__global__ void __launch_bounds__(kThreads) cutoff_kernel(EncodeCall call) {
  __shared__ CutoffShared shared;
  const uint32_t threshold = call.is_sampled ? call.state->threshold : 1;
  const uint32_t num_candidates = call.state->num_candidates;
  const bool is_exact = is_misjudged(call, threshold, num_candidates);
  Bin bin{1, kMagnitudeMask + 1, 31, call.k};  // all elements but zeros
  uint32_t num_above = 0;
  if (!is_exact) {
    bin = find_bin_of_cutoff(call, threshold, num_candidates);
    num_above = count_sub_block(call, bin, shared.candidates);
  }
  if (threadIdx.x == 0) {
    call.num_above[blockIdx.x] = num_above;
    call.num_ties[blockIdx.x] = 0;
  }
  if (!is_last_block(&call.state->cutoff_blocks_done)) return;

  const uint32_t num_close_calls = __ldcg(&call.state->num_close_calls);
  Cutoff cutoff;
  if (is_exact) {
    cutoff = find_cutoff(call, bin, shared.digit_counts,
                         [&](auto&& visit) { for_each_element(call, shared.tile, visit); });
  } else {
    cutoff = find_cutoff(call, bin, shared.digit_counts, [&](auto&& visit) {
      for_each_close_call(call, num_close_calls, num_candidates, visit);
    });
  }
  const uint2 sum = sum_sub_blocks(call);
  if (threadIdx.x == 0) {
    cutoff.is_misjudged = is_exact;
    cutoff.num_selected = sum.x + (sum.y < cutoff.num_ties ? sum.y : cutoff.num_ties);
    call.state->cutoff = cutoff;
    call.state->num_close_calls = 0;
  }
}

}  // namespace

void enqueue_cutoff(const EncodeCall& call, cudaStream_t stream) {
  launch(cutoff_kernel, call.layout.num_sub_blocks, kThreads, stream, call);
}

}  // namespace fastcomm::cuda_topk
