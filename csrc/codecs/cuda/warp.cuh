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

}  // namespace fastcomm
