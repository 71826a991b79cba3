#pragma once
// Decoding one block by one warp: the sum of the payloads' blocks, in registers, written once.

#include "codecs/cuda/pieces.cuh"
#include "codecs/cuda/rotation.cuh"

namespace fastcomm {

// sum = decode(payload 0) + decode(payload 1) + ..., in this order, of the elements for which
// for_each_code(section, visit) calls visit(slot, code).
template <class C, int kSlots, class ForEachCode>
__device__ __forceinline__ void sum_payloads(const CudaDecodeArguments& arguments,
                                             const PieceBlock<C>& block, float (&sum)[kSlots],
                                             ForEachCode&& for_each_code) {
  const auto for_each_value = [&](int payload, auto&& visit) {
    const auto in = block.section(arguments.payloads[payload]);
    const BlockScale scale = block_scale<C>(in.scale(block.index));
    for_each_code(in.block_codes(block.index),
                  [&](int slot, uint32_t code) { visit(slot, C::dequantize(code, scale)); });
  };
  for_each_value(0, [&](int slot, float value) { sum[slot] = value; });
#pragma unroll 1
  for (int payload = 1; payload < arguments.payloads.size; ++payload) {
    for_each_value(payload, [&](int slot, float value) { sum[slot] += value; });
  }
}

template <class C, class Element, class Layout>
__device__ __forceinline__ void decode_block(const CudaDecodeArguments& arguments,
                                             const PieceBlock<C>& block, bool is_failed,
                                             Element* out, int lane) {
  float sum[Layout::kSlots];
  sum_payloads(arguments, block, sum, [&](const typename C::Unit* codes, auto&& visit) {
    Layout::load_codes(codes, lane, visit);
  });
  if constexpr (C::kIsRotated) {
    // As on the CPU: a block whose sum begins with a value that is not finite is NaN as a whole.
    is_failed |= !is_finite(__shfl_sync(kAllLanes, sum[0], 0));
    rotate_block<Layout, false>(sum, lane, arguments.signs);
  }
  Layout::store(out, lane, [&](int slot) {
    return to_result<Element>(is_failed ? bits_float(kNanBits) : sum[slot] * arguments.factor);
  });
}

// The last block of a section, if it is not whole: in shared memory, element by element.
template <class C, class Element>
__device__ void decode_tail(const CudaDecodeArguments& arguments, const PieceBlock<C>& block,
                            bool is_failed, Element* out, int lane, float* stash) {
#pragma unroll 1
  for (int i = lane; i < block.count; i += kWarpLanes) {
    float sum[1];
    sum_payloads(arguments, block, sum, [&](const typename C::Unit* codes, auto&& visit) {
      visit(0, code_in<C>(codes[i % block.units], i / block.units));
    });
    stash[i] = sum[0];
  }
  __syncwarp();
  if constexpr (C::kIsRotated) {
    is_failed |= !is_finite(stash[0]);
    __syncwarp();
    rotate_tail<false>(stash, block.count, lane, arguments.signs);
  }
#pragma unroll 1
  for (int i = lane; i < block.count; i += kWarpLanes) {
    out[i] = to_result<Element>(is_failed ? bits_float(kNanBits) : stash[i] * arguments.factor);
  }
  __syncwarp();  // before the stash is used again
}

}  // namespace fastcomm
