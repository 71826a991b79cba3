// The kernels of the dense codecs, and their launches.

#include <utility>

#include "codecs/cuda/decode.cuh"
#include "codecs/cuda/dense.h"
#include "codecs/cuda/encode_tail.cuh"
#include "codecs/dense/codecs.h"

namespace fastcomm {
namespace {

constexpr int kThreads = 128;
// At least so many blocks of a multiprocessor at a time: 128 registers for each thread, so that
// none is spilled, and 16 warps, which have three times the loads under way that memory needs to be
// busy. (Random numbers take more.)
constexpr int kBlocks = 4;
constexpr int kWarps = kThreads / kWarpLanes;

// The layout of a whole block whose memory is (not) aligned to quads.
template <class C, bool kIsAligned>
using LayoutOf = std::conditional_t<kIsAligned && Quads<C>::kExists, Quads<C>, Strided<C>>;

template <class C, class Element, bool kIsStochastic>
__global__ void __launch_bounds__(kThreads, kIsStochastic ? 3 : kBlocks)
    encode_kernel(const __grid_constant__ CudaEncodeArguments arguments) {
  __shared__ float stashes[kWarps][C::kBlockElements];
  const int lane = lane_of_thread();
  const bool is_failed = has_failed(arguments.failed);
  for (int64_t index = arguments.first_block + warp_of_grid(); index < arguments.end_block;
       index += num_warps_of_grid()) {
    const PieceBlock<C> block(arguments.pieces, index);
    const Element* gradient = static_cast<const Element*>(arguments.gradient) + block.begin;
    float* residual = arguments.residual == nullptr ? nullptr : arguments.residual + block.begin;
    if (!block.is_whole()) {
      encode_tail<C, Element, kIsStochastic>(arguments, block, gradient, residual, is_failed, lane,
                                             stashes[threadIdx.x / kWarpLanes]);
    } else if (Quads<C>::is_aligned(gradient) && Quads<C>::is_aligned(residual)) {
      encode_block<C, Element, LayoutOf<C, true>, kIsStochastic>(arguments, block, gradient,
                                                                 residual, is_failed, lane);
    } else {
      encode_block<C, Element, LayoutOf<C, false>, kIsStochastic>(arguments, block, gradient,
                                                                  residual, is_failed, lane);
    }
    if (block.is_last) clear_padding(block, arguments.payload, lane);
  }
}

template <class C, class Element>
__global__ void __launch_bounds__(kThreads, kBlocks)
    decode_kernel(const __grid_constant__ CudaDecodeArguments arguments) {
  __shared__ float stashes[kWarps][C::kBlockElements];
  const int lane = lane_of_thread();
  const bool is_failed = has_failed(arguments.failed);
  for (int64_t index = arguments.first_block + warp_of_grid(); index < arguments.end_block;
       index += num_warps_of_grid()) {
    const PieceBlock<C> block(arguments.pieces, index);
    Element* out = static_cast<Element*>(arguments.out) + block.begin;
    if (!block.is_whole()) {
      decode_tail(arguments, block, is_failed, out, lane, stashes[threadIdx.x / kWarpLanes]);
    } else if (Quads<C>::is_aligned(out)) {
      decode_block<C, Element, LayoutOf<C, true>>(arguments, block, is_failed, out, lane);
    } else {
      decode_block<C, Element, LayoutOf<C, false>>(arguments, block, is_failed, out, lane);
    }
  }
}

// Enough blocks for the work, no more than run at a time: each warp walks the blocks of the bucket.
template <class Arguments>
void launch_over_blocks(void (*kernel)(Arguments), const Arguments& arguments,
                        cudaStream_t stream) {
  const int64_t num_blocks = arguments.end_block - arguments.first_block;
  if (num_blocks == 0) return;
  const int64_t most = num_resident_blocks(kernel, kThreads);
  const int64_t needed = (num_blocks + kWarps - 1) / kWarps;
  launch(kernel, needed < most ? needed : most, kThreads, stream, arguments);
}

template <class C>
void encode(DType dtype, const CudaEncodeArguments& arguments, cudaStream_t stream) {
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    if constexpr (StochasticCodec<C>) {
      if (arguments.is_stochastic) {
        return launch_over_blocks(encode_kernel<C, Element, true>, arguments, stream);
      }
    }
    launch_over_blocks(encode_kernel<C, Element, false>, arguments, stream);
  });
}

template <class C>
void decode(DType dtype, const CudaDecodeArguments& arguments, cudaStream_t stream) {
  visit_dtype(dtype, [&](auto element) {
    launch_over_blocks(decode_kernel<C, decltype(element)>, arguments, stream);
  });
}

template <int kWireId>
CudaDenseKernels kernels_of_wire_id() {
  if constexpr (requires { typename DenseCodecOfWireId<kWireId>::type; }) {
    using C = typename DenseCodecOfWireId<kWireId>::type;
    return {encode<C>, decode<C>};
  } else {
    return {};
  }
}

template <int... kWireIds>
CudaDenseKernels find_kernels(int wire_id, std::integer_sequence<int, kWireIds...>) {
  static const CudaDenseKernels kernels[] = {kernels_of_wire_id<kWireIds>()...};
  return kernels[wire_id];
}

}  // namespace

CudaDenseKernels cuda_dense_kernels(uint8_t wire_id) {
  return find_kernels(wire_id, std::make_integer_sequence<int, kNumWireIds>{});
}

RotationSignBits make_rotation_sign_bits(uint32_t seed, bool rotates) {
  const RotationSigns signs = make_rotation_signs(seed);
  RotationSignBits bits{{}, rotates};
  for (int i = 0; i < kRotationElements; ++i)
    bits.words[i / 32] |= signs.flips[i] >> 31 << (i % 32);
  return bits;
}

}  // namespace fastcomm
