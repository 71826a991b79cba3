#pragma once
// Encoding one block by one warp, around the element math of a dense codec.
//
// A whole block lives in registers: each lane holds the elements that its layout says
// (lane_layouts.cuh); memory is read and written once. The last block of a section, if it is not
// whole, goes through shared memory (encode_tail.cuh).
//
// The residual is only written when it is known that the block is finite, so that one that is not
// leaves its previous residual untouched.

#include "codecs/cuda/pieces.cuh"
#include "codecs/cuda/rotation.cuh"
#include "codecs/cuda/statistics.cuh"

namespace fastcomm {

// The random words of a lane's elements; encode_loops.inl says which element has which.
template <class C>
struct LaneNoise {
  static constexpr int kQuarter = C::kBlockElements / 4;

  __device__ __forceinline__ static PhiloxWords words(const RoundingNoise& noise, int64_t begin,
                                                      int element) {
    const uint64_t counter = static_cast<uint64_t>(begin) + element % kQuarter;
    return philox({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                    noise.step, noise.bucket}},
                  {{noise.seed, noise.rank}});
  }
  __device__ __forceinline__ static uint32_t word(const PhiloxWords& words, int element) {
    const int index = element / kQuarter;
    const uint32_t low = (index & 1) != 0 ? words.word[1] : words.word[0];
    const uint32_t high = (index & 1) != 0 ? words.word[3] : words.word[2];
    return (index & 2) != 0 ? high : low;
  }
};

// values = gradient + residual, rotated if the codec is, + decode(received...)
template <class C, class Element, class Layout>
__device__ __forceinline__ void accumulate(const CudaEncodeArguments& arguments,
                                           const PieceBlock<C>& block, const Element* gradient,
                                           const float* residual, bool is_failed, int lane,
                                           float (&values)[Layout::kSlots]) {
  Layout::load(gradient, lane,
               [&](int slot, Element element) { values[slot] = to_float(element); });
  if (residual != nullptr) {
    Layout::load(residual, lane, [&](int slot, float left_out) { values[slot] += left_out; });
  }
  if constexpr (C::kIsRotated) rotate_block<Layout, true>(values, lane, arguments.signs);
#pragma unroll 1
  for (int i = 0; i < arguments.received.size; ++i) {
    const auto in = block.section(arguments.received[i]);
    const BlockScale scale = block_scale<C>(in.scale(block.index));
    Layout::load_codes(in.block_codes(block.index), lane, [&](int slot, uint32_t code) {
      values[slot] += C::dequantize(code, scale);
    });
  }
  if (is_failed) {
#pragma unroll
    for (int slot = 0; slot < Layout::kSlots; ++slot) values[slot] = bits_float(kNanBits);
  }
}

// Quantizes the values to codes; what is left out stays in `values`.
template <class C, class Layout, bool kIsStochastic>
__device__ __forceinline__ void quantize(const CudaEncodeArguments& arguments,
                                         const PieceBlock<C>& block, BlockScale scale, int lane,
                                         typename C::Unit* codes, float (&values)[Layout::kSlots]) {
  if constexpr (kIsStochastic) {
    using Noise = LaneNoise<C>;
    PhiloxWords words[Layout::kNoiseCounters];
#pragma unroll
    for (int i = 0; i < Layout::kNoiseCounters; ++i) {
      words[i] = Noise::words(arguments.noise, block.begin, Layout::element(i, lane));
    }
    Layout::store_codes(codes, lane, [&](int slot) {
      const uint32_t random =
          Noise::word(words[slot % Layout::kNoiseCounters], Layout::element(slot, lane));
      return C::quantize_stochastic(values[slot], scale, random).code;
    });
  } else {
    Layout::store_codes(codes, lane, [&](int slot) {
      const Quantized quantized = C::quantize(values[slot], scale);
      values[slot] -= quantized.value;
      return quantized.code;
    });
  }
}

template <class C, class Element, class Layout, bool kIsStochastic>
__device__ __forceinline__ void encode_block(const CudaEncodeArguments& arguments,
                                             const PieceBlock<C>& block, const Element* gradient,
                                             float* residual, bool is_failed, int lane) {
  float values[Layout::kSlots];
  accumulate<C, Element, Layout>(arguments, block, gradient, residual, is_failed, lane, values);

  const auto out = block.section(arguments.payload);
  auto* const codes = out.block_codes(block.index);
  const uint32_t largest = largest_magnitude(values);
  BlockScale scale{};
  bool is_finite_block = largest < kInfinityBits;
  if constexpr (kHasScale<C>) {
    uint32_t statistic = largest;
    if constexpr (C::kScaledBy == ScaledBy::kMeanMagnitude) {
      statistic = float_bits(sum_of_magnitudes(Layout{}, values, lane) /
                             static_cast<float>(C::kBlockElements));
    }
    const uint16_t wire_scale = choose_wire_scale<C>(statistic);
    if (lane == 0) out.scales[block.index] = wire_scale;
    is_finite_block = wire_scale != kNonFiniteScale;
    scale = block_scale<C>(wire_scale);
    if (!is_finite_block || wire_scale == 0) {
      Layout::store_codes(codes, lane, [](int) { return 0u; });
    } else {
      quantize<C, Layout, kIsStochastic>(arguments, block, scale, lane, codes, values);
    }
  } else {
    quantize<C, Layout, kIsStochastic>(arguments, block, scale, lane, codes, values);
  }

  if (residual == nullptr) return;
  if (is_finite_block) {
    if constexpr (C::kIsRotated) rotate_block<Layout, false>(values, lane, arguments.signs);
    Layout::store(residual, lane, [&](int slot) { return values[slot]; });
  } else if constexpr (!kHasScale<C>) {  // finiteness is a matter of each element
#pragma unroll
    for (int slot = 0; slot < Layout::kSlots; ++slot) {
      if (is_finite(values[slot])) residual[Layout::element(slot, lane)] = values[slot];
    }
  }
}

}  // namespace fastcomm
