#pragma once
// The randomized Hadamard rotation of dense/rotation.h, of a block in the registers of a warp and
// of a tail in shared memory. The additions are those of dense/rotation.inl, in the same order of
// stages: the results are equal bit by bit.

#include "codecs/cuda/dense.h"
#include "codecs/cuda/lane_layouts.cuh"

namespace fastcomm {

// Whether the element's sign flips, as the bit to flip.
__device__ __forceinline__ uint32_t flip_of(const RotationSignBits& signs, int element) {
  return signs.words[element / 32] >> (element % 32) << 31;
}

__device__ __forceinline__ float flipped(float value, uint32_t flip) {
  return bits_float(float_bits(value) ^ flip);
}

// The same of a lane's elements, a bit for each slot.
template <class Layout>
__device__ __forceinline__ uint32_t flips_of_lane(const RotationSignBits& signs, int lane) {
  uint32_t flips = 0;
#pragma unroll
  for (int slot = 0; slot < Layout::kSlots; ++slot) {
    flips |= flip_of(signs, Layout::element(slot, lane)) >> (31 - slot);
  }
  return flips;
}

// Butterflies between the slots of each lane.
template <int kDistance, int kSlots>
__device__ __forceinline__ void stage_of_slots(float (&values)[kSlots]) {
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    if ((slot & kDistance) != 0) continue;
    const float a = values[slot];
    const float b = values[slot + kDistance];
    values[slot] = a + b;
    values[slot + kDistance] = a - b;
  }
}

// Butterflies between lanes, at each distance 1, 2, ... 16.
template <int kSlots>
__device__ __forceinline__ void stages_of_lanes(float (&values)[kSlots], int lane) {
#pragma unroll
  for (int distance = 1; distance < kWarpLanes; distance *= 2) {
    const uint32_t flip = (lane & distance) != 0 ? 0x80000000u : 0u;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const float other = __shfl_xor_sync(kAllLanes, values[slot], distance);
      values[slot] = other + flipped(values[slot], flip);
    }
  }
}

template <class C, int kSlots>
__device__ __forceinline__ void transform(Quads<C>, float (&values)[kSlots], int lane) {
  stage_of_slots<1>(values);
  stage_of_slots<2>(values);
  stages_of_lanes(values, lane);
  stage_of_slots<4>(values);
}

template <class C, int kSlots>
__device__ __forceinline__ void transform(Strided<C>, float (&values)[kSlots], int lane) {
  stages_of_lanes(values, lane);
  stage_of_slots<1>(values);
  stage_of_slots<2>(values);
  stage_of_slots<4>(values);
}

// Rotates a whole block, or rotates it back.
template <class Layout, bool kIsForward, int kSlots>
__device__ __forceinline__ void rotate_block(float (&values)[kSlots], int lane,
                                             const RotationSignBits& signs) {
  static_assert(kSlots * kWarpLanes == kRotationElements);
  constexpr float kNorm = 1.0f / 16.0f;  // 1 / sqrt(kRotationElements)
  if (!signs.rotates) return;
  const uint32_t flips = flips_of_lane<Layout>(signs, lane);
  const auto flip_all = [&] {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      values[slot] = flipped(values[slot], flips << (31 - slot) & 0x80000000u);
    }
  };
  if (kIsForward) flip_all();
  transform(Layout{}, values, lane);
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) values[slot] *= kNorm;
  if (!kIsForward) flip_all();
}

// The same of a tail of `count` values in shared memory, by the lanes of one warp.
template <bool kIsForward>
__device__ void rotate_tail(float* values, int count, int lane, const RotationSignBits& signs) {
  if (!signs.rotates) return;
  const auto flip_all = [&] {
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < count; i += kWarpLanes)
      values[i] = flipped(values[i], flip_of(signs, i));
  };
  if (kIsForward) flip_all();
  int first = 0;
#pragma unroll 1
  for (int size = kRotationElements / 2; size > 0; size /= 2) {
    if ((count & size) == 0) continue;
    float* piece = values + first;
#pragma unroll 1
    for (int distance = 1; distance < size; distance *= 2) {
      __syncwarp();
#pragma unroll 1
      for (int pair = lane; pair < size / 2; pair += kWarpLanes) {
        const int i = pair / distance * 2 * distance + pair % distance;
        const float a = piece[i];
        const float b = piece[i + distance];
        piece[i] = a + b;
        piece[i + distance] = a - b;
      }
    }
    const float norm = 1.0f / sqrtf(static_cast<float>(size));
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < size; i += kWarpLanes) piece[i] *= norm;
    first += size;
  }
  if (!kIsForward) flip_all();
  __syncwarp();
}

}  // namespace fastcomm
