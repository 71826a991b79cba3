#pragma once
// What kernels have in common.

#include <cuda_runtime.h>

#include <cstdint>

namespace fastcomm {

inline constexpr int kWarpLanes = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_of_thread() {
  return static_cast<int>(threadIdx.x) % kWarpLanes;
}

// Index of this warp among those of the grid, and how many there are.
__device__ __forceinline__ int64_t warp_of_grid() {
  return (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarpLanes;
}
__device__ __forceinline__ int64_t num_warps_of_grid() {
  return int64_t{gridDim.x} * blockDim.x / kWarpLanes;
}

// Of `count` ascending numbers, the index of the last that is not above `value`; the first is not.
template <class NumberAt>
__device__ __forceinline__ int last_not_above(int64_t value, int count, NumberAt&& number_at) {
  int first = 0;
#pragma unroll 1
  while (count > 1) {
    const int half = count / 2;
    if (number_at(first + half) <= value) {
      first += half;
      count -= half;
    } else {
      count = half;
    }
  }
  return first;
}

// Of CudaWorkspace::failed.
__device__ __forceinline__ bool has_failed(const uint32_t* failed) {
  return failed != nullptr && __ldcg(failed) != 0;
}

}  // namespace fastcomm
