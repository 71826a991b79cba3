// out = factor * (the sum of the sections), chunk by chunk: a block sums a chunk in shared memory,
// section after section, and writes it once.

#include "codecs/cuda/topk_device.cuh"

namespace fastcomm::cuda_topk {
namespace {

constexpr int kThreads = 256;
constexpr int kChunkElements = 8192;
constexpr int kSectionsAtOnce = 64;  // whose entries in the chunk are searched for at the same time

struct Range {
  uint32_t begin, end;
};

struct DecodeShared {
  float sum[kChunkElements];
  Range ranges[kSectionsAtOnce];
};

// The first of the ascending offsets[begin] .. offsets[end - 1] that is at least `bound`, or `end`;
// by all lanes of a warp. If they do not ascend, any of begin .. end.
__device__ __forceinline__ uint32_t find_offset(const uint16_t* offsets, uint32_t begin,
                                                uint32_t end, uint32_t bound) {
  while (begin < end) {
    // Each lane looks at the last of a part.
    const uint32_t part = (end - begin + kWarpLanes - 1) / kWarpLanes;
    const uint32_t last = begin + part * (static_cast<uint32_t>(lane_of_thread()) + 1) - 1;
    const bool is_below = last < end && offsets[last] < bound;
    const auto parts_below = static_cast<uint32_t>(__popc(__ballot_sync(kAllLanes, is_below)));
    begin += part * parts_below;
    const uint32_t part_end = begin + part - 1;  // the part's last is not below
    if (part_end < end) end = part_end;
  }
  return begin < end ? begin : end;
}

// The entries of the sections `first_section` .. that are in the chunk.
__device__ __forceinline__ void find_ranges(const DecodeCall& call, int64_t first_section,
                                            int num_sections, Range* ranges) {
  const int64_t sub_block = int64_t{blockIdx.x} * kChunkElements / kSubBlockElements;
  const auto first_offset =
      static_cast<uint32_t>(int64_t{blockIdx.x} * kChunkElements % kSubBlockElements);
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  for (int search = warp; search < 2 * num_sections; search += kThreads / kWarpLanes) {
    const int64_t section = first_section + search / 2;
    const auto* offsets =
        reinterpret_cast<const uint16_t*>(call.sections[section] + call.layout.offsets);
    const uint32_t* firsts =
        call.first_entries + section * (call.layout.num_sub_blocks + 1) + sub_block;
    const bool is_end = search % 2 != 0;
    const uint32_t bound = first_offset + (is_end ? kChunkElements : 0);
    const uint32_t entry = find_offset(offsets, firsts[0], firsts[1], bound);
    if (lane_of_thread() == 0) (is_end ? ranges[search / 2].end : ranges[search / 2].begin) = entry;
  }
}

struct Entry {
  uint32_t place;  // in the chunk; beyond it: none
  float value;
};

__device__ __forceinline__ Entry load_entry(const DecodeCall& call, int64_t section,
                                            const Range& range, uint32_t i) {
  if (range.begin + i >= range.end) return {kChunkElements, 0.0f};
  const std::byte* const bytes = call.sections[section];
  const uint32_t entry = range.begin + i;
  const uint32_t offset = reinterpret_cast<const uint16_t*>(bytes + call.layout.offsets)[entry];
  const uint16_t value = reinterpret_cast<const uint16_t*>(bytes + call.layout.values)[entry];
  const auto first_offset =
      static_cast<uint32_t>(int64_t{blockIdx.x} * kChunkElements % kSubBlockElements);
  return {offset - first_offset, bf16_to_float(value)};
}

__device__ __forceinline__ void add_entry(float* sum, const Entry& entry) {
  if (entry.place < kChunkElements) sum[entry.place] += entry.value;
}

__device__ __forceinline__ void add_sections(const DecodeCall& call, DecodeShared& shared) {
  for (int64_t first = 0; first < call.num_sections; first += kSectionsAtOnce) {
    const int64_t left = call.num_sections - first;
    const int count = left < kSectionsAtOnce ? static_cast<int>(left) : kSectionsAtOnce;
    find_ranges(call, first, count, shared.ranges);
    __syncthreads();
    // The next section's first entries are loaded before the barrier between the two.
    Entry next = load_entry(call, first, shared.ranges[0], threadIdx.x);
    for (int i = 0; i < count; ++i) {
      const Range range = shared.ranges[i];
      add_entry(shared.sum, next);
      if (i + 1 < count) {
        next = load_entry(call, first + i + 1, shared.ranges[i + 1], threadIdx.x);
      }
      for (uint32_t j = threadIdx.x + kThreads; range.begin + j < range.end; j += kThreads) {
        add_entry(shared.sum, load_entry(call, first + i, range, j));
      }
      __syncthreads();
    }
  }
}

__device__ __forceinline__ void store_quad(float* to, const float (&values)[4]) {
  __stcs(reinterpret_cast<float4*>(to),
         make_float4(to_result<float>(values[0]), to_result<float>(values[1]),
                     to_result<float>(values[2]), to_result<float>(values[3])));
}
template <class Half>
__device__ __forceinline__ void store_quad(Half* to, const float (&values)[4]) {
  uint32_t bits[4];
  for (int i = 0; i < 4; ++i) bits[i] = to_result<Half>(values[i]).bits;
  __stcs(reinterpret_cast<uint2*>(to),
         make_uint2(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16));
}

template <class Element>
__global__ void __launch_bounds__(kThreads) decode_kernel(DecodeCall call) {
  __shared__ DecodeShared shared;
  for (int i = static_cast<int>(threadIdx.x); i < kChunkElements; i += kThreads) shared.sum[i] = 0;
  __syncthreads();
  add_sections(call, shared);

  const bool is_nan = has_failed(call.failed);
  const auto result = [&](int i) {
    return is_nan ? bits_float(kNanBits) : shared.sum[i] * call.factor;
  };
  const int64_t first = int64_t{blockIdx.x} * kChunkElements;
  const Piece* piece = find_piece(call.pieces, first);
  Element* const out = static_cast<Element*>(piece->elements) + (first - piece->first_index);
  const bool is_whole = first + kChunkElements <= piece[1].first_index;
  if (is_whole && reinterpret_cast<uintptr_t>(out) % (4 * sizeof(Element)) == 0) {
    for (int i = 4 * static_cast<int>(threadIdx.x); i < kChunkElements; i += 4 * kThreads) {
      const float values[4] = {result(i), result(i + 1), result(i + 2), result(i + 3)};
      store_quad(out + i, values);
    }
    return;
  }
  PieceWalk walk(piece);
  for (int i = static_cast<int>(threadIdx.x); i < kChunkElements; i += kThreads) {
    if (first + i >= call.pieces.num_elements) break;
    walk.move_to(first + i);
    static_cast<Element*>(walk.elements())[walk.offset()] = to_result<Element>(result(i));
  }
}

}  // namespace

void enqueue_decode(DType dtype, const DecodeCall& call, cudaStream_t stream) {
  const int64_t num_chunks = (call.pieces.num_elements + kChunkElements - 1) / kChunkElements;
  visit_dtype(dtype, [&](auto element) {
    launch(decode_kernel<decltype(element)>, num_chunks, kThreads, stream, call);
  });
}

}  // namespace fastcomm::cuda_topk
