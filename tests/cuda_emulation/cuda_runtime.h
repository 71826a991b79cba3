#pragma once
// Runs CUDA kernels on the host, so that their logic is tested where there is no GPU: this header
// stands in for CUDA's own when a C++ compiler compiles the kernels' sources.
//
// The blocks of a launch run one after another, on the thread that launches. Each CUDA thread of a
// block is a fiber, which runs until it meets others: at a warp-wide operation or a barrier. One
// warp runs as far ahead of the others as barriers allow; which one comes first is a setting, so
// that a missing barrier shows. Streams do at once what they are asked to, and "device" memory is
// ordinary memory. Nothing here says how fast a kernel is.
//
// Only what csrc/ uses is here. Warp-wide operations take the whole warp; a lane that does not come
// is a failure.

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace cuda_emulation {
struct Index {
  unsigned x = 0, y = 0, z = 0;
};
}  // namespace cuda_emulation

inline thread_local cuda_emulation::Index threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

#include "device_functions.h"
#include "runtime_functions.h"
