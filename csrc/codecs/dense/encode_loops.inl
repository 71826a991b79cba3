// Encoding with a dense codec, block by block, for one instruction set; included by loops.inl.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

// Whether the largest magnitude of a block decides on its scale, or whether it is finite.
template <class C>
inline constexpr bool kNeedsLargest = C::kScaledBy != ScaledBy::kMeanMagnitude;

// The block loops that a section takes: they depend on what there is.
template <class C>
struct EncodeLoops {
  using Unit = typename C::Unit;
  using Quantize = void(float* stash, BlockScale scale, const uint32_t* noise, float* residual,
                        Unit* codes, BlockGradient gradient, bool fetches_codes,
                        const RotationSigns* signs);

  uint32_t (*accumulate)(const void* gradient, const float* residual, const RotationSigns* signs,
                         float* stash);
  uint32_t (*accumulate_received)(const void* gradient, const float* residual, const Unit* codes,
                                  uint16_t wire_scale, float* stash);
  Quantize* quantize;
  Quantize* quantize_non_finite;
};

template <class C, bool kHasResidual>
EncodeLoops<C> encode_loops(DType dtype, bool is_stochastic) {
  EncodeLoops<C> loops{};
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    loops.accumulate =
        accumulate<C::kBlockElements, kNeedsLargest<C>, C::kIsRotated, Element, kHasResidual>;
    if constexpr (!C::kIsRotated) {
      loops.accumulate_received = accumulate_received<C, Element, kHasResidual>;
    }
  });
  loops.quantize = quantize<C, kHasResidual, true, false>;
  if constexpr (!kHasScale<C>) loops.quantize_non_finite = quantize<C, kHasResidual, false, false>;
  if constexpr (StochasticCodec<C> && !kHasResidual) {
    if (is_stochastic) loops.quantize = quantize<C, false, true, true>;
  }
  return loops;
}

// The memory of a block.
template <class C>
struct BlockMemory {
  BlockGradient gradient;
  float* residual;  // nullptr: none
  typename C::Unit* codes;
  uint16_t* wire_scale;
};

// The scale of a block, as it is sent.
template <class C>
FASTCOMM_INLINE_LOOP uint16_t wire_scale_of(const float* stash, uint32_t largest, int count) {
  if constexpr (C::kScaledBy == ScaledBy::kMeanMagnitude) {
    largest = float_bits(mean_magnitude<C::kBlockElements>(stash, count));
  }
  return choose_wire_scale<C>(largest);
}

template <class C>
FASTCOMM_INLINE_LOOP void encode_block(const EncodeArguments& arguments,
                                       const EncodeLoops<C>& loops, int64_t index,
                                       const BlockMemory<C>& block) {
  constexpr int kElements = C::kBlockElements;
  alignas(64) float stash[kElements];
  // A rotated codec's payloads are sums of rotated values: they are added after the rotation.
  const int num_fused = !C::kIsRotated && arguments.num_received > 0 ? 1 : 0;
  uint32_t largest;
  if (num_fused > 0) {
    const SectionView<C, const std::byte> in(arguments.received[0], arguments.num_elements);
    largest = loops.accumulate_received(block.gradient.elements, block.residual,
                                        in.block_codes(index), in.scale(index), stash);
  } else {
    largest = loops.accumulate(block.gradient.elements, block.residual, arguments.signs, stash);
  }
  for (int i = num_fused; i < arguments.num_received; ++i) {
    const SectionView<C, const std::byte> in(arguments.received[i], arguments.num_elements);
    add_block<C, true>(in.block_codes(index), in.scale(index), stash);
  }
  if constexpr (kNeedsLargest<C>) {
    if (arguments.num_received > num_fused) largest = largest_magnitude<kElements>(stash);
  }

  BlockScale scale{};
  if constexpr (kHasScale<C>) {
    *block.wire_scale = wire_scale_of<C>(stash, largest, kElements);
    if (*block.wire_scale == kNonFiniteScale || *block.wire_scale == 0) {
      std::memset(block.codes, 0, kBlockUnits<C> * sizeof(typename C::Unit));
      if (*block.wire_scale == 0 && block.residual != nullptr) {
        if constexpr (C::kIsRotated) rotate_back(stash, arguments.signs, stash);
        std::memcpy(block.residual, stash, sizeof stash);
      }
      return;
    }
    scale = block_scale<C>(*block.wire_scale);
  }
  alignas(64) uint32_t noise[StochasticCodec<C> ? kElements : 1];
  if constexpr (StochasticCodec<C>) {
    if (arguments.noise != nullptr) {
      make_noise<kElements>(*arguments.noise, index * kElements, noise);
    }
  }
  const bool fetches_codes = arguments.num_received == 0;
  if (kHasScale<C> || largest < kInfinityBits) {
    loops.quantize(stash, scale, noise, block.residual, block.codes, block.gradient, fetches_codes,
                   arguments.signs);
  } else {
    loops.quantize_non_finite(stash, scale, noise, block.residual, block.codes, block.gradient,
                              fetches_codes, arguments.signs);
  }
}

// Block `index`, the last one, of `count` elements.
template <class C>
FASTCOMM_BLOCK_LOOP void encode_tail(const EncodeArguments& arguments, const EncodeLoops<C>& loops,
                                     int64_t index, int count, const BlockMemory<C>& block) {
  constexpr int kElements = C::kBlockElements;
  constexpr int kPlanes = C::kElementsPerUnit;
  constexpr int kUnits = kBlockUnits<C>;
  const int units = (count + kPlanes - 1) / kPlanes;
  const auto code_bytes = static_cast<size_t>(units) * sizeof(typename C::Unit);
  const auto residual_bytes = static_cast<size_t>(count) * sizeof(float);

  alignas(64) std::byte gradient[kElements * sizeof(float)] = {};
  alignas(64) float residual[kElements] = {};
  alignas(64) float values[kElements];
  std::memcpy(gradient, block.gradient.elements,
              static_cast<size_t>(count * block.gradient.element_bytes));
  if (block.residual != nullptr) std::memcpy(residual, block.residual, residual_bytes);
  loops.accumulate(gradient, residual, nullptr, values);
  if constexpr (C::kIsRotated) rotate_tail(values, count, arguments.signs);
  for (int i = 0; i < arguments.num_received; ++i) {
    const SectionView<C, const std::byte> in(arguments.received[i], arguments.num_elements);
    float added[kElements];
    decode_tail<C>(in.block_codes(index), in.scale(index), units, added);
    for (int e = 0; e < count; ++e) values[e] += added[e];
  }
  // A codec without a level at zero decodes padding to something else.
  std::memset(values + count, 0, static_cast<size_t>(kElements - count) * sizeof(float));

  const uint32_t largest = largest_magnitude<kElements>(values);
  BlockScale scale{};
  if constexpr (kHasScale<C>) {
    *block.wire_scale = wire_scale_of<C>(values, largest, count);
    if (*block.wire_scale == kNonFiniteScale || *block.wire_scale == 0) {
      std::memset(block.codes, 0, code_bytes);
      if (*block.wire_scale == 0 && block.residual != nullptr) {
        if constexpr (C::kIsRotated) rotate_tail_back(values, count, arguments.signs);
        std::memcpy(block.residual, values, residual_bytes);
      }
      return;
    }
    scale = block_scale<C>(*block.wire_scale);
  }
  alignas(64) uint32_t noise[StochasticCodec<C> ? kElements : 1];
  if constexpr (StochasticCodec<C>) {
    if (arguments.noise != nullptr) {
      uint32_t words[kElements];
      make_noise<kElements>(*arguments.noise, index * kElements, words);
      copy_planes(words, units, noise, kUnits, kPlanes, units);
    }
  }
  alignas(64) float stash[kElements] = {};
  float left_out[kElements] = {};
  typename C::Unit codes[kUnits];
  copy_planes(values, units, stash, kUnits, kPlanes, units);
  copy_planes(residual, units, left_out, kUnits, kPlanes, units);
  if (kHasScale<C> || largest < kInfinityBits) {
    loops.quantize(stash, scale, noise, left_out, codes, block.gradient, false, nullptr);
  } else {
    loops.quantize_non_finite(stash, scale, noise, left_out, codes, block.gradient, false, nullptr);
  }
  std::memcpy(block.codes, codes, code_bytes);
  if (block.residual == nullptr) return;
  copy_planes(left_out, kUnits, values, units, kPlanes, units);
  if constexpr (C::kIsRotated) rotate_tail_back(values, count, arguments.signs);
  std::memcpy(block.residual, values, residual_bytes);
}

template <class C>
FASTCOMM_LOOPS_TARGET void encode(DType dtype, const EncodeArguments& arguments) {
  constexpr int kBlock = C::kBlockElements;
  const bool has_residual = arguments.residual != nullptr;
  const bool is_stochastic = arguments.noise != nullptr;
  const auto loops = has_residual ? encode_loops<C, true>(dtype, is_stochastic)
                                  : encode_loops<C, false>(dtype, is_stochastic);
  const auto* gradient = static_cast<const std::byte*>(arguments.gradient);
  const auto gradient_bytes = static_cast<int>(dtype_bytes(dtype));
  const SectionView<C, std::byte> out(arguments.section, arguments.num_elements);
  const auto memory_of = [&](int64_t block) {
    const int64_t first = block * kBlock;
    return BlockMemory<C>{{gradient + first * gradient_bytes, gradient_bytes},
                          has_residual ? arguments.residual + first : nullptr,
                          out.block_codes(block),
                          out.scales + block};
  };
  const int64_t num_full_blocks = arguments.num_elements / kBlock;
  const int64_t end_block = smaller(arguments.end_block, num_full_blocks);
  for (int64_t block = arguments.first_block; block < end_block; ++block) {
    encode_block<C>(arguments, loops, block, memory_of(block));
  }
  const int tail = static_cast<int>(arguments.num_elements - num_full_blocks * kBlock);
  if (tail > 0 && arguments.end_block > num_full_blocks) {
    encode_tail<C>(arguments, loops, num_full_blocks, tail, memory_of(num_full_blocks));
  }
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
