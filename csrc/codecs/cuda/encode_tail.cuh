#pragma once
// Encoding the last block of a section by one warp, if it is not whole: in shared memory, element
// by element.

#include "codecs/cuda/encode.cuh"

namespace fastcomm {

template <class C, class Element, bool kIsStochastic>
__device__ void encode_tail(const CudaEncodeArguments& arguments, const PieceBlock<C>& block,
                            const Element* gradient, float* residual, bool is_failed, int lane,
                            float* stash) {
  constexpr int kPlanes = C::kElementsPerUnit;
  const int padded_count = block.units * kPlanes;
#pragma unroll 1
  for (int i = lane; i < padded_count; i += kWarpLanes) {
    float value = 0.0f;
    if (i < block.count) {
      value = to_float(gradient[i]);
      if (residual != nullptr) value += residual[i];
    }
    stash[i] = value;
  }
  if constexpr (C::kIsRotated) rotate_tail<true>(stash, block.count, lane, arguments.signs);
  __syncwarp();
#pragma unroll 1
  for (int index = 0; index < arguments.received.size; ++index) {
    const auto in = block.section(arguments.received[index]);
    const BlockScale scale = block_scale<C>(in.scale(block.index));
    const auto* codes = in.block_codes(block.index);
#pragma unroll 1
    for (int i = lane; i < block.count; i += kWarpLanes) {
      stash[i] += C::dequantize(code_in<C>(codes[i % block.units], i / block.units), scale);
    }
  }
  if (is_failed) {
#pragma unroll 1
    for (int i = lane; i < block.count; i += kWarpLanes) stash[i] = bits_float(kNanBits);
  }
  __syncwarp();

  uint32_t largest = 0;
#pragma unroll 1
  for (int i = lane; i < block.count; i += kWarpLanes) {
    const uint32_t bits = magnitude_bits(stash[i]);
    largest = largest > bits ? largest : bits;
  }
  largest = __reduce_max_sync(kAllLanes, largest);

  const auto out = block.section(arguments.payload);
  auto* const codes = out.block_codes(block.index);
  BlockScale scale{};
  bool is_sent = true;
  bool is_finite_block = true;
  if constexpr (kHasScale<C>) {
    uint32_t statistic = largest;
    if constexpr (C::kScaledBy == ScaledBy::kMeanMagnitude) {
      float even = 0.0f;  // of the elements of every other group of 32
      float odd = 0.0f;
#pragma unroll 1
      for (int i = lane; i < block.count; i += 2 * kWarpLanes) {
        even += magnitude(stash[i]);
        if (i + kWarpLanes < block.count) odd += magnitude(stash[i + kWarpLanes]);
      }
      statistic = float_bits(sum_of_lanes(even + odd, 16) / static_cast<float>(block.count));
    }
    const uint16_t wire_scale = choose_wire_scale<C>(statistic);
    if (lane == 0) out.scales[block.index] = wire_scale;
    is_finite_block = wire_scale != kNonFiniteScale;
    is_sent = is_finite_block && wire_scale != 0;
    scale = block_scale<C>(wire_scale);
  }

#pragma unroll 1
  for (int unit = lane; unit < block.units; unit += kWarpLanes) {
    uint32_t packed = 0;
#pragma unroll 1
    for (int plane = 0; is_sent && plane < kPlanes; ++plane) {
      const int i = plane * block.units + unit;
      const float value = stash[i];
      Quantized quantized;
      if constexpr (kIsStochastic) {
        const PhiloxWords words = LaneNoise<C>::words(arguments.noise, block.begin, i);
        quantized = C::quantize_stochastic(value, scale, LaneNoise<C>::word(words, i));
      } else {
        quantized = C::quantize(value, scale);
      }
      packed |= quantized.code << (plane * kCodeBits<C> % 32);
      stash[i] = value - quantized.value;
    }
    codes[unit] = static_cast<typename C::Unit>(packed);
  }
  __syncwarp();
  if (residual == nullptr || !is_finite_block) return;
  if constexpr (C::kIsRotated) rotate_tail<false>(stash, block.count, lane, arguments.signs);
#pragma unroll 1
  for (int i = lane; i < block.count; i += kWarpLanes) {
    if (kHasScale<C> || is_finite(stash[i])) residual[i] = stash[i];
  }
  __syncwarp();  // before the stash is used again
}

// Zeroes the padding of a section: it is part of the payload.
template <class C>
__device__ __forceinline__ void clear_padding(const PieceBlock<C>& block, std::byte* payload,
                                              int lane) {
  std::byte* const section = payload + block.piece.section_offset;
  const auto view = block.section(payload);
  const int64_t scales_bytes = kHasScale<C> ? (block.index + 1) * 2 : 0;
  auto* const codes_begin = reinterpret_cast<std::byte*>(view.codes);
  auto* const codes_end = reinterpret_cast<std::byte*>(view.block_codes(block.index) + block.units);
  const int64_t codes_bytes = codes_end - section;
  const int64_t scales_padding = codes_begin - section - scales_bytes;
  const int64_t codes_padding = align_up(codes_bytes, kSectionAlignment) - codes_bytes;
  if (lane < scales_padding) section[scales_bytes + lane] = std::byte{0};
  if (lane < codes_padding) codes_end[lane] = std::byte{0};
}

}  // namespace fastcomm
