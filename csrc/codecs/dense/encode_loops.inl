// The encoding loops around the element math of a dense codec, for one instruction set;
// included by loops.inl.
//
// Encode runs two loops per block. The first accumulates gradient + residual + received into a
// stash that stays in the L1 cache and finds the block's statistic; the second quantizes the stash
// and writes codes and residual. Memory is read and written once. The second loop, which reads
// nothing from memory, prefetches what the next blocks need: without that the memory would idle
// meanwhile (int8 encode: 0.95 instead of 0.75 of the byte rate of b += a).
//
// The residual is only written by the second loop, so that a block that turns out to be
// non-finite leaves its previous residual untouched.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

// The memory of one block of units * kElementsPerUnit elements. `units` is a constant in the loop
// over whole blocks. Padding after the last element of a section is zero on input.
template <class C, class Element>
struct BlockMemory {
  int64_t index;  // of the block in its section
  int count;      // elements, without padding
  int units;
  const Element* __restrict__ gradient;
  float* __restrict__ residual;
  typename C::Unit* __restrict__ codes;
  uint16_t* __restrict__ scale;
};

// stash = gradient + residual (+ decode(received)); returns the largest magnitude as bits.
template <class C, class Element, bool kHasResidual, bool kAddsReceived>
FASTCOMM_INLINE_LOOP uint32_t accumulate(const BlockMemory<C, Element>& block,
                                         const typename C::Unit* __restrict__ received,
                                         uint16_t received_scale, float* __restrict__ stash) {
  const Element* __restrict__ gradient = block.gradient;
  const float* __restrict__ residual = block.residual;
  const BlockScale incoming = block_scale<C>(received_scale);
  uint32_t largest = 0;
  for (int plane = 0; plane < C::kElementsPerUnit; ++plane) {
    const int first = plane * block.units;
    for (int unit = 0; unit < block.units; ++unit) {
      float value = to_float(gradient[first + unit]);
      if constexpr (kHasResidual) value += residual[first + unit];
      if constexpr (kAddsReceived) {
        value += C::dequantize(code_in<C>(received[unit], plane), incoming);
      }
      stash[first + unit] = value;
      largest = larger(largest, magnitude_bits(value));
    }
  }
  return largest;
}

FASTCOMM_INLINE_LOOP uint32_t largest_magnitude(const float* __restrict__ stash, int count) {
  uint32_t largest = 0;
  for (int i = 0; i < count; ++i) largest = larger(largest, magnitude_bits(stash[i]));
  return largest;
}

// Summed in 64 lanes and then pairwise, on every instruction set: sums depend on their order.
// The rest of the block is zero.
template <class C>
FASTCOMM_INLINE_LOOP float mean_magnitude(const float* __restrict__ stash, int count) {
  constexpr int kSums = 64;
  float sums[kSums] = {};
  for (int first = 0; first < C::kBlockElements; first += kSums) {
    for (int i = 0; i < kSums; ++i) sums[i] += bits_float(magnitude_bits(stash[first + i]));
  }
  for (int distance = kSums / 2; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  return sums[0] / static_cast<float>(count);
}

// A random word for each element of a block: element i has word i / q of the counter f + i % q,
// where q is a quarter of the block and f the index in the bucket of the block's first element.
template <class C>
FASTCOMM_INLINE_LOOP void make_noise(const RoundingNoise& noise, int64_t first_element,
                                     uint32_t* __restrict__ words) {
  constexpr int kQuarter = C::kBlockElements / 4;
  const auto element = static_cast<uint64_t>(noise.first_element + first_element);
  for (int i = 0; i < kQuarter; ++i) {
    const uint64_t counter = element + static_cast<uint64_t>(i);
    const PhiloxWords random =
        philox({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), noise.step,
                 noise.bucket}},
               {{noise.seed, noise.rank}});
    for (int word = 0; word < 4; ++word) words[word * kQuarter + i] = random.word[word];
  }
}

// Quantizes the stash to codes. What is left out goes to the residual, or back into the stash if
// the codec is rotated. Without a scale (kIsFinite false), finiteness is a matter of each element.
template <class C, class Element, bool kHasResidual, bool kHasReceived, bool kIsFinite,
          bool kIsStochastic>
FASTCOMM_INLINE_LOOP void quantize(const BlockMemory<C, Element>& block, BlockScale scale,
                                   float* __restrict__ stash, const uint32_t* __restrict__ noise) {
  constexpr int kPlanes = C::kElementsPerUnit;
  constexpr int kChunk = 32;  // units between two prefetches
  const Element* next_gradient = block.gradient + kPrefetchDistance;
  const float* next_residual = kHasResidual ? block.residual + kPrefetchDistance : nullptr;
  const typename C::Unit* next_codes = block.codes + kPrefetchDistance / kPlanes;
  float* __restrict__ residual = block.residual;
  typename C::Unit* __restrict__ codes = block.codes;
  for (int chunk = 0; chunk < block.units; chunk += kChunk) {
    prefetch<false>(next_gradient + chunk * kPlanes, kChunk * kPlanes);
    if constexpr (kHasResidual) prefetch<true>(next_residual + chunk * kPlanes, kChunk * kPlanes);
    if constexpr (!kHasReceived) prefetch<true>(next_codes + chunk, kChunk);
    const int chunk_end = chunk + kChunk < block.units ? chunk + kChunk : block.units;
    for (int unit = chunk; unit < chunk_end; ++unit) {
      uint32_t packed = 0;
      for (int plane = 0; plane < kPlanes; ++plane) {
        const int i = plane * block.units + unit;
        const float value = stash[i];
        Quantized quantized;
        if constexpr (kIsStochastic) {
          quantized = C::quantize_stochastic(value, scale, noise[i]);
        } else {
          quantized = C::quantize(value, scale);
        }
        packed |= quantized.code << (plane * kCodeBits<C> % 32);
        if constexpr (kHasResidual) {
          const float left_out = value - quantized.value;
          if constexpr (C::kIsRotated) {
            stash[i] = left_out;
          } else if constexpr (kIsFinite) {
            residual[i] = left_out;
          } else {
            const float previous = residual[i];
            residual[i] = is_finite(left_out) ? left_out : previous;
          }
        }
      }
      codes[unit] = static_cast<typename C::Unit>(packed);
    }
  }
}

template <class C, class Element, bool kHasResidual, bool kHasReceived, bool kIsStochastic>
FASTCOMM_INLINE_LOOP void encode_block(const EncodeArguments& arguments,
                                       const BlockMemory<C, Element>& block) {
  // A rotated codec's payloads are sums of rotated values: they are added after the rotation.
  constexpr bool kFusesReceived = kHasReceived && !C::kIsRotated;
  const int padded_count = block.units * C::kElementsPerUnit;
  alignas(64) float stash[C::kBlockElements];
  auto received = [&](int index) {
    return SectionView<C, const std::byte>(arguments.received[index], arguments.num_elements);
  };

  uint32_t largest;
  if constexpr (kFusesReceived) {
    const auto in = received(0);
    largest = accumulate<C, Element, kHasResidual, true>(block, in.block_codes(block.index),
                                                         in.scale(block.index), stash);
  } else {
    largest = accumulate<C, Element, kHasResidual, false>(block, nullptr, 0, stash);
  }
  if constexpr (C::kIsRotated) rotate(stash, block.count, arguments.signs);
  if constexpr (kHasReceived) {
    constexpr int kNumFused = kFusesReceived ? 1 : 0;
    for (int index = kNumFused; index < arguments.num_received; ++index) {
      const auto in = received(index);
      add_block<C, true>(block.units, in.block_codes(block.index), in.scale(block.index), stash);
    }
    if (arguments.num_received > kNumFused) largest = largest_magnitude(stash, padded_count);
  }
  // A codec without a level at zero decodes padding to something else.
  std::memset(stash + block.count, 0,
              static_cast<size_t>(C::kBlockElements - block.count) * sizeof(float));

  BlockScale scale{};
  if constexpr (kHasScale<C>) {
    uint32_t statistic = largest;
    if constexpr (C::kScaledBy == ScaledBy::kMeanMagnitude) {
      statistic = float_bits(mean_magnitude<C>(stash, block.count));
    }
    *block.scale = choose_wire_scale<C>(statistic);
    const bool is_non_finite = *block.scale == kNonFiniteScale;
    if (is_non_finite || *block.scale == 0) {
      std::memset(block.codes, 0, static_cast<size_t>(block.units) * sizeof(typename C::Unit));
      if constexpr (kHasResidual) {
        if (is_non_finite) return;
        if constexpr (C::kIsRotated) {
          rotate_back(stash, block.count, arguments.signs, block.residual);
        } else {
          std::memcpy(block.residual, stash, static_cast<size_t>(padded_count) * sizeof(float));
        }
      }
      return;
    }
    scale = block_scale<C>(*block.scale);
  }

  alignas(64) uint32_t noise[kIsStochastic ? C::kBlockElements : 1];
  if constexpr (kIsStochastic) {
    make_noise<C>(*arguments.noise, block.index * C::kBlockElements, noise);
  }
  if (kHasScale<C> || largest < kInfinityBits) {
    quantize<C, Element, kHasResidual, kHasReceived, true, kIsStochastic>(block, scale, stash,
                                                                          noise);
  } else {
    quantize<C, Element, kHasResidual, kHasReceived, false, kIsStochastic>(block, scale, stash,
                                                                           noise);
  }
  if constexpr (C::kIsRotated && kHasResidual) {
    rotate_back(stash, block.count, arguments.signs, block.residual);
  }
}

template <class C, class Element, bool kHasResidual, bool kHasReceived, bool kIsStochastic>
FASTCOMM_LOOPS_TARGET void encode_section(const EncodeArguments& arguments) {
  constexpr int kBlock = C::kBlockElements;
  constexpr int kUnits = kBlock / C::kElementsPerUnit;
  const auto* gradient = static_cast<const Element*>(arguments.gradient);
  float* residual = arguments.residual;
  const SectionView<C, std::byte> out(arguments.section, arguments.num_elements);
  const int64_t num_full_blocks = arguments.num_elements / kBlock;
  const int64_t end_block = smaller(arguments.end_block, num_full_blocks);
  for (int64_t block = arguments.first_block; block < end_block; ++block) {
    const int64_t first = block * kBlock;
    encode_block<C, Element, kHasResidual, kHasReceived, kIsStochastic>(
        arguments,
        {block, kBlock, kUnits, gradient + first, kHasResidual ? residual + first : nullptr,
         out.block_codes(block), out.scales + block});
  }

  const int tail = static_cast<int>(arguments.num_elements - num_full_blocks * kBlock);
  // tail < kBlock: said for GCC, which else warns of blocks longer than their stash.
  if (tail <= 0 || tail >= kBlock || arguments.end_block <= num_full_blocks) return;
  const int64_t first = num_full_blocks * kBlock;
  const int units = (tail + C::kElementsPerUnit - 1) / C::kElementsPerUnit;
  const auto tail_bytes = static_cast<size_t>(tail) * sizeof(float);
  Element padded_gradient[kBlock] = {};
  float padded_residual[kBlock] = {};
  std::memcpy(padded_gradient, gradient + first, static_cast<size_t>(tail) * sizeof(Element));
  if (kHasResidual) std::memcpy(padded_residual, residual + first, tail_bytes);
  encode_block<C, Element, kHasResidual, kHasReceived, kIsStochastic>(
      arguments, {num_full_blocks, tail, units, padded_gradient, padded_residual,
                  out.block_codes(num_full_blocks), out.scales + num_full_blocks});
  if (kHasResidual) std::memcpy(residual + first, padded_residual, tail_bytes);
}

template <class C>
void encode(DType dtype, const EncodeArguments& arguments) {
  const bool has_residual = arguments.residual != nullptr;
  const bool has_received = arguments.num_received > 0;
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    if constexpr (StochasticCodec<C>) {
      if (arguments.noise != nullptr && has_received) {
        return encode_section<C, Element, false, true, true>(arguments);
      }
      if (arguments.noise != nullptr) {
        return encode_section<C, Element, false, false, true>(arguments);
      }
    }
    if (has_residual && has_received) {
      return encode_section<C, Element, true, true, false>(arguments);
    }
    if (has_residual) return encode_section<C, Element, true, false, false>(arguments);
    if (has_received) return encode_section<C, Element, false, true, false>(arguments);
    return encode_section<C, Element, false, false, false>(arguments);
  });
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
