#pragma once
// The statistic of a block, from which its scale is made; the same on every lane.

#include "codecs/cuda/lane_layouts.cuh"

namespace fastcomm {

// The largest magnitude, as bits.
template <int kSlots>
__device__ __forceinline__ uint32_t largest_magnitude(const float (&values)[kSlots]) {
  uint32_t largest = 0;
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const uint32_t bits = magnitude_bits(values[slot]);
    largest = largest > bits ? largest : bits;
  }
  return __reduce_max_sync(kAllLanes, largest);
}

__device__ __forceinline__ float magnitude(float value) {
  return bits_float(magnitude_bits(value));
}

// Adds the sum of lane j + distance to that of lane j, for distances from `first` down to 1: all
// lanes end with the same sum, since a + b = b + a.
__device__ __forceinline__ float sum_of_lanes(float sum, int first) {
#pragma unroll
  for (int distance = first; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  return sum;
}

// The sum of magnitudes in the order of the wire format: 64 sums, j of the elements j, j + 64, ...,
// which are then added pairwise.
template <class C, int kSlots>
__device__ __forceinline__ float sum_of_magnitudes(Strided<C>, const float (&values)[kSlots], int) {
  float sums[2] = {magnitude(values[0]), magnitude(values[1])};
#pragma unroll
  for (int slot = 2; slot < kSlots; ++slot) sums[slot % 2] += magnitude(values[slot]);
  return sum_of_lanes(sums[0] + sums[1], 16);
}

// A lane of the lower half and its partner in the upper half hold elements of the same four sums.
// The lower one takes the first two of these, the upper one the others, and so on: each step halves
// what there is to exchange.
template <class C, int kSlots>
__device__ __forceinline__ float sum_of_magnitudes(Quads<C>, const float (&values)[kSlots],
                                                   int lane) {
  const bool is_upper = (lane & 16) != 0;
  float sums[2];
#pragma unroll
  for (int v = 0; v < kSlots / 4; ++v) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float first = magnitude(values[4 * v + i]);
      const float second = magnitude(values[4 * v + 2 + i]);
      const float theirs = __shfl_xor_sync(kAllLanes, is_upper ? first : second, 16);
      const float mine = is_upper ? second : first;
      const float of_lower = is_upper ? theirs : mine;
      const float of_upper = is_upper ? mine : theirs;
      sums[i] = (v == 0 ? of_lower : sums[i] + of_lower) + of_upper;
    }
  }
  const bool takes_second = (lane & 8) != 0;
  const float theirs = __shfl_xor_sync(kAllLanes, takes_second ? sums[0] : sums[1], 8);
  float sum = (takes_second ? sums[1] : sums[0]) + theirs;
  sum = sum_of_lanes(sum, 4);
  sum += __shfl_xor_sync(kAllLanes, sum, 16);
  return sum + __shfl_xor_sync(kAllLanes, sum, 8);
}

}  // namespace fastcomm
