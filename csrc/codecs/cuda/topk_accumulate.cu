// value = gradient + residual, the residuals, and the candidates: the pass over all elements.
//
// A thread has 16 elements of a tile in registers, as rows of kWidth consecutive ones: 4, loaded
// and stored as one vector, where the whole tile is in one piece and aligned, else 1. The
// candidates of the lanes of a warp in one row are a group; groups, row by row and in each warp by
// warp, are in order of the index.

#include "codecs/cuda/topk_device.cuh"

namespace fastcomm::cuda_topk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kElementsPerThread = kTileElements / kThreads;

struct TileShared {
  uint32_t group_counts[kElementsPerThread * kWarps];
  uint32_t group_starts[kElementsPerThread * kWarps];
  uint32_t first;  // of the tile's candidates
  uint32_t count;
};

template <class T>
__device__ __forceinline__ bool is_aligned(const T* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

__device__ __forceinline__ void load_row(const float* from, float (&row)[4]) {
  const float4 quad = __ldcs(reinterpret_cast<const float4*>(from));
  row[0] = quad.x;
  row[1] = quad.y;
  row[2] = quad.z;
  row[3] = quad.w;
}

template <class Half>
__device__ __forceinline__ void load_row(const Half* from, float (&row)[4]) {
  const uint2 quad = __ldcs(reinterpret_cast<const uint2*>(from));
  row[0] = to_float(Half{static_cast<uint16_t>(quad.x)});
  row[1] = to_float(Half{static_cast<uint16_t>(quad.x >> 16)});
  row[2] = to_float(Half{static_cast<uint16_t>(quad.y)});
  row[3] = to_float(Half{static_cast<uint16_t>(quad.y >> 16)});
}

template <class Element>
__device__ __forceinline__ void load_row(const Element* from, float (&row)[1]) {
  row[0] = to_float(*from);
}

__device__ __forceinline__ void store_finite(const float (&row)[1], float* to) {
  if (is_finite(row[0])) *to = row[0];
}

__device__ __forceinline__ void store_finite(const float (&row)[4], float* to) {
  if (is_finite(row[0]) && is_finite(row[1]) && is_finite(row[2]) && is_finite(row[3])) {
    __stcs(reinterpret_cast<float4*>(to), make_float4(row[0], row[1], row[2], row[3]));
    return;
  }
  for (int i = 0; i < 4; ++i) {
    if (is_finite(row[i])) to[i] = row[i];
  }
}

// Where the groups' candidates go; by one warp. Returns how many there are, in its last lane.
template <int kGroups>
__device__ __forceinline__ uint32_t find_group_starts(TileShared& shared) {
  constexpr int kPerLane = kGroups / kWarpLanes;
  const int lane = lane_of_thread();
  uint32_t counts[kPerLane];
  uint32_t of_lane = 0;
  for (int i = 0; i < kPerLane; ++i) {
    counts[i] = shared.group_counts[lane * kPerLane + i];
    of_lane += counts[i];
  }
  uint32_t sum = of_lane;
  for (int distance = 1; distance < kWarpLanes; distance *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += other;
  }
  uint32_t start = sum - of_lane;
  for (int i = 0; i < kPerLane; ++i) {
    shared.group_starts[lane * kPerLane + i] = start;
    start += counts[i];
  }
  return sum;
}

// Walks the memory of a tile in step with ascending places in the tile.
template <class Element, bool kHasResidual>
class TileMemory {
 public:
  __device__ __forceinline__ TileMemory(const Piece* piece, int64_t first)
      : first_(first), next_(piece) {
    enter_next_piece();
  }
  __device__ __forceinline__ void move_to(int place) {
    while (place >= end_) enter_next_piece();
  }
  // Of the tile's first element, as if it were in the same piece.
  __device__ __forceinline__ const Element* gradient() const { return gradient_; }
  __device__ __forceinline__ float* residual() const { return residual_; }
  // Whether the vectors of a tile of `count` elements may be loaded and stored as such.
  __device__ __forceinline__ bool is_one_vector_array(int count) const {
    return count == kTileElements && end_ == kTileElements &&
           is_aligned(gradient_, 4 * sizeof(Element)) &&
           (!kHasResidual || is_aligned(residual_, 4 * sizeof(float)));
  }

 private:
  __device__ __forceinline__ void enter_next_piece() {
    const Piece piece = *next_++;
    const int64_t offset = first_ - piece.first_index;
    gradient_ = static_cast<const Element*>(piece.elements) + offset;
    if constexpr (kHasResidual) residual_ = piece.residual + offset;
    const int64_t end = next_->first_index - first_;
    end_ = end < kTileElements ? static_cast<int>(end) : kTileElements;
  }

  int64_t first_;
  const Piece* next_;
  const Element* gradient_;
  float* residual_ = nullptr;
  int end_;  // place after the piece's last element
};

template <class Element, bool kHasResidual, int kWidth>
class Tile {
 public:
  using Memory = TileMemory<Element, kHasResidual>;
  static constexpr int kRows = kElementsPerThread / kWidth;
  // That are being loaded; more take more registers than there are.
  static constexpr int kRowsAtOnce = kRows < 8 ? kRows : 8;

  __device__ __forceinline__ Tile(const EncodeCall& call, uint32_t threshold, int count)
      : call_(call), threshold_(threshold), count_(count) {}

  __device__ __forceinline__ void run(const Piece* piece, TileShared& shared) {
    load(Memory(piece, first_index()));
    count_candidates(shared);
    __syncthreads();
    if (threadIdx.x < kWarpLanes) {
      const uint32_t count = find_group_starts<kRows * kWarps>(shared);
      if (lane_of_thread() == kWarpLanes - 1) {
        uint32_t first = count == 0 ? 0 : atomicAdd(&call_.state->num_candidates, count);
        if (uint64_t{first} + count > call_.capacity) first = kNotStored;
        shared.first = first;
        call_.tiles[blockIdx.x] = {first, count};
      }
    }
    __syncthreads();
    if (shared.first == kNotStored) return;
    store_candidates(shared);
    if constexpr (kHasResidual) store_residuals(Memory(piece, first_index()));
  }

 private:
  __device__ __forceinline__ static int64_t first_index() {
    return int64_t{blockIdx.x} * kTileElements;
  }
  __device__ __forceinline__ int place_of(int row) const {
    return (row * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
  }
  __device__ __forceinline__ bool is_inside(int row) const {
    return kWidth > 1 || place_of(row) < count_;
  }
  __device__ __forceinline__ bool is_candidate(int row, int i) const {
    return (candidates_ >> (row * kWidth + i)) & 1u;
  }

  __device__ __forceinline__ void load(Memory memory) {
    const bool is_nan = has_failed(call_.failed);
    for (int first = 0; first < kRows; first += kRowsAtOnce) {
      float residuals[kRowsAtOnce][kWidth];
      for (int row = first; row < first + kRowsAtOnce; ++row) {
        for (int i = 0; i < kWidth; ++i) values_[row][i] = residuals[row - first][i] = 0;
        if (!is_inside(row)) continue;
        const int place = place_of(row);
        if constexpr (kWidth == 1) memory.move_to(place);
        load_row(memory.gradient() + place, values_[row]);
        if constexpr (kHasResidual) load_row(memory.residual() + place, residuals[row - first]);
      }
      for (int row = first; row < first + kRowsAtOnce; ++row) {
        for (int i = 0; i < kWidth; ++i) {
          float& value = values_[row][i];
          if constexpr (kHasResidual) value += residuals[row - first][i];
          value = is_nan && is_inside(row) ? bits_float(kNanBits) : with_one_nan(value);
        }
      }
    }
  }

  __device__ __forceinline__ void count_candidates(TileShared& shared) {
    candidates_ = 0;
    const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    for (int row = 0; row < kRows; ++row) {
      int count = 0;
      for (int i = 0; i < kWidth; ++i) {
        const bool is_candidate = magnitude_bits(values_[row][i]) >= threshold_;
        count += __popc(__ballot_sync(kAllLanes, is_candidate));
        candidates_ |= static_cast<uint32_t>(is_candidate) << (row * kWidth + i);
      }
      if (lane_of_thread() == 0) {
        shared.group_counts[row * kWarps + warp] = static_cast<uint32_t>(count);
      }
    }
  }

  __device__ __forceinline__ void store_candidates(const TileShared& shared) {
    const unsigned lanes_before = (1u << lane_of_thread()) - 1;
    const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    for (int row = 0; row < kRows; ++row) {
      const int group = row * kWarps + warp;
      if (shared.group_counts[group] == 0) continue;
      uint32_t at = shared.first + shared.group_starts[group];
      for (int i = 0; i < kWidth; ++i) {
        at += __popc(__ballot_sync(kAllLanes, is_candidate(row, i)) & lanes_before);
      }
      for (int i = 0; i < kWidth; ++i) {
        if (!is_candidate(row, i)) continue;
        const float value = values_[row][i];
        call_.candidate_indices[at] =
            blockIdx.x * kTileElements + static_cast<uint32_t>(place_of(row) + i);
        call_.candidate_values[at] = value;
        ++at;
        const uint32_t bin = (magnitude_bits(value) - threshold_) >> kBinShift;
        if (bin < kBins - 1) atomicAdd(&call_.state->bins[bin], 1u);
      }
    }
  }

  // Residuals of elements that are not finite stay as they are. These are candidates, and Inf - Inf
  // is not finite either.
  __device__ __forceinline__ void store_residuals(Memory memory) {
    for (int row = 0; row < kRows; ++row) {
      for (int i = 0; i < kWidth; ++i) {
        float& value = values_[row][i];
        if (is_candidate(row, i)) value = sent_rounding_error(value);
      }
    }
    for (int row = 0; row < kRows; ++row) {
      if (!is_inside(row)) continue;
      const int place = place_of(row);
      if constexpr (kWidth == 1) memory.move_to(place);
      store_finite(values_[row], memory.residual() + place);
    }
  }

  const EncodeCall& call_;
  uint32_t threshold_;
  int count_;  // elements
  float values_[kRows][kWidth];
  uint32_t candidates_;  // a bit for each element
};

template <class Element, bool kHasResidual>
__global__ void __launch_bounds__(kThreads, 4) accumulate_kernel(EncodeCall call) {
  __shared__ TileShared shared;
  const uint32_t threshold = call.is_sampled ? call.state->threshold : 1;
  const int64_t first = int64_t{blockIdx.x} * kTileElements;
  const int64_t left = call.pieces.num_elements - first;
  const int count = left < kTileElements ? static_cast<int>(left) : kTileElements;
  const Piece* const piece = find_piece(call.pieces, first);
  if (TileMemory<Element, kHasResidual>(piece, first).is_one_vector_array(count)) {
    Tile<Element, kHasResidual, 4>(call, threshold, count).run(piece, shared);
  } else {
    Tile<Element, kHasResidual, 1>(call, threshold, count).run(piece, shared);
  }
}

}  // namespace

void enqueue_accumulate(const EncodeCall& call, cudaStream_t stream) {
  const int64_t num_tiles = (call.pieces.num_elements + kTileElements - 1) / kTileElements;
  visit_dtype(call.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto kernel =
        call.has_residual ? accumulate_kernel<Element, true> : accumulate_kernel<Element, false>;
    launch(kernel, num_tiles, kThreads, stream, call);
  });
}

}  // namespace fastcomm::cuda_topk
