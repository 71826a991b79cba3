#pragma once
// What the kernels of the top-k codec have in common.

#include <cstdint>

#include "codecs/cuda/topk_kernels.cuh"
#include "codecs/cuda/warp.cuh"
#include "codecs/sparse/kernels.h"
#include "core/dtype.h"

namespace fastcomm::cuda_topk {

__device__ __forceinline__ float gradient_value(DType dtype, const void* gradient, int64_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(gradient)[i];
  if (dtype == DType::kBFloat16) return to_float(static_cast<const BFloat16*>(gradient)[i]);
  return to_float(static_cast<const Float16*>(gradient)[i]);
}

// The piece that `index` is in.
__device__ __forceinline__ const Piece* find_piece(const Pieces& pieces, int64_t index) {
  return pieces.table + last_not_above(index, pieces.count,
                                       [&](int piece) { return pieces.table[piece].first_index; });
}

// Walks pieces in step with ascending indices, from the piece of the first one.
class PieceWalk {
 public:
  __device__ __forceinline__ explicit PieceWalk(const Piece* piece)
      : piece_(*piece), next_(piece + 1), end_(next_->first_index) {}
  __device__ __forceinline__ void move_to(int64_t index) {
    while (index >= end_) {
      piece_ = *next_++;
      end_ = next_->first_index;
    }
    offset_ = index - piece_.first_index;
  }
  __device__ __forceinline__ void* elements() const { return piece_.elements; }
  __device__ __forceinline__ int64_t offset() const { return offset_; }
  __device__ __forceinline__ float* residual() const { return piece_.residual + offset_; }

 private:
  Piece piece_;
  const Piece* next_;
  int64_t end_;
  int64_t offset_ = 0;
};

__device__ __forceinline__ float* residual_of(const Pieces& pieces, int64_t index) {
  const Piece* piece = find_piece(pieces, index);
  return piece->residual + (index - piece->first_index);
}

__device__ __forceinline__ float* velocity_of(const Pieces& pieces, int64_t index) {
  const Piece* piece = find_piece(pieces, index);
  return piece->velocity + (index - piece->first_index);
}

// Of the block's threads: those before this one, and all.
template <class T>
struct BlockSum {
  T before;
  T total;
};

template <class T>
__device__ __forceinline__ BlockSum<T> block_sum(T value) {
  __shared__ T warp_sums[kWarpLanes];
  const int lane = lane_of_thread();
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  T sum = value;
  for (int distance = 1; distance < kWarpLanes; distance *= 2) {
    const T other = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += other;
  }
  __syncthreads();  // the previous call's sums have been read
  if (lane == kWarpLanes - 1) warp_sums[warp] = sum;
  __syncthreads();
  BlockSum<T> result{static_cast<T>(sum - value), 0};
  const int num_warps = static_cast<int>(blockDim.x) / kWarpLanes;
  for (int other = 0; other < num_warps; ++other) {
    if (other < warp) result.before += warp_sums[other];
    result.total += warp_sums[other];
  }
  return result;
}

// The bin of the needed-th element, the uppermost being the first, and which of the bin's it is.
struct FoundBin {
  uint32_t bin;
  uint32_t needed;  // 0: there are fewer elements
};

// load(i): the counts of bins 4 * i to 4 * i + 3, of 4 * kQuads bins for each thread.
template <int kQuads, class Load>
__device__ __forceinline__ FoundBin find_bin(uint32_t needed, Load&& load) {
  __shared__ FoundBin found;
  const uint32_t first_quad = (blockDim.x - 1 - threadIdx.x) * kQuads;
  uint32_t counts[4 * kQuads];
  uint32_t sum = 0;
  for (int i = 0; i < kQuads; ++i) {
    const uint4 quad = load(first_quad + static_cast<uint32_t>(i));
    counts[4 * i] = quad.x;
    counts[4 * i + 1] = quad.y;
    counts[4 * i + 2] = quad.z;
    counts[4 * i + 3] = quad.w;
    sum += quad.x + quad.y + quad.z + quad.w;
  }
  if (threadIdx.x == 0) found = {0, 0};
  const BlockSum<uint32_t> in_block = block_sum(sum);
  if (in_block.before < needed && needed - in_block.before <= sum) {
    uint32_t left = needed - in_block.before;
    bool is_found = false;
    for (int i = 4 * kQuads - 1; i >= 0; --i) {
      if (!is_found && counts[i] >= left) {
        is_found = true;
        found = {4 * first_quad + static_cast<uint32_t>(i), left};
      }
      left -= counts[i];
    }
  }
  __syncthreads();
  const FoundBin result = found;
  __syncthreads();  // before the next call changes it
  return result;
}

// Whether all other blocks of the grid are done; what they wrote can then be read with __ldcg.
// `blocks_done` is zero again afterwards.
__device__ __forceinline__ bool is_last_block(uint32_t* blocks_done) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(blocks_done, 1u) == gridDim.x - 1;
    if (is_last) *blocks_done = 0;
  }
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}

// The candidates of a sub-block, as one sequence in order of their index. In shared memory.
struct SubBlockCandidates {
  uint32_t first[kTilesPerSubBlock];       // where a tile's are stored
  uint32_t num_before[kTilesPerSubBlock];  // in the tiles before
  uint32_t count;

  // For all threads of the block; ends with a barrier.
  __device__ __forceinline__ void load(const EncodeCall& call, int64_t sub_block) {
    if (threadIdx.x < kWarpLanes) {
      const int lane = lane_of_thread();
      const int64_t tile = sub_block * kTilesPerSubBlock + lane;
      TileRecord record{0, 0};
      if (lane < kTilesPerSubBlock && tile * kTileElements < call.pieces.num_elements) {
        record = call.tiles[tile];
      }
      uint32_t sum = record.count;
      for (int distance = 1; distance < kTilesPerSubBlock; distance *= 2) {
        const uint32_t other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane >= distance) sum += other;
      }
      if (lane < kTilesPerSubBlock) {
        first[lane] = record.first;
        num_before[lane] = sum - record.count;
      }
      if (lane == kTilesPerSubBlock - 1) count = sum;
    }
    __syncthreads();
  }

  // Where candidate i is stored.
  __device__ __forceinline__ uint32_t place(uint32_t i) const {
    int tile = 0;
    for (int half = kTilesPerSubBlock / 2; half > 0; half /= 2) {
      if (num_before[tile + half] <= i) tile += half;
    }
    return first[tile] + (i - num_before[tile]);
  }
};

// The values of a tile after accumulate, which its threads write to `values`, in shared memory;
// between barriers. Returns how many there are.
__device__ __forceinline__ int load_tile(const EncodeCall& call, int64_t tile, float* values) {
  const int64_t first = tile * kTileElements;
  const int64_t left = call.pieces.num_elements - first;
  const int count = left < kTileElements ? static_cast<int>(left) : kTileElements;
  const TileRecord record = call.tiles[tile];
  const bool is_accumulated = call.has_residual && record.first != kNotStored;
  const bool is_nan = has_failed(call.failed);
  PieceWalk walk(find_piece(call.pieces, first));
  __syncthreads();  // the previous tile has been read
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    walk.move_to(first + i);
    float value = call.has_residual ? *walk.residual() : 0.0f;
    if (!is_accumulated) {
      value = with_one_nan(value + gradient_value(call.dtype, walk.elements(), walk.offset()));
      if (is_nan) value = bits_float(kNanBits);
    }
    values[i] = value;
  }
  __syncthreads();
  if (!is_accumulated) return count;
  for (uint32_t i = threadIdx.x; i < record.count; i += blockDim.x) {
    const uint32_t index = call.candidate_indices[record.first + i];
    values[index - static_cast<uint32_t>(first)] = call.candidate_values[record.first + i];
  }
  __syncthreads();
  return count;
}

}  // namespace fastcomm::cuda_topk
