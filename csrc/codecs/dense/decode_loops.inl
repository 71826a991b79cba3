// Decoding of a dense codec, block by block, for one instruction set; included by loops.inl.
//
// A block is summed in a stash that stays in the L1 cache, then written once.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

// out = to_result(factor * sum)
template <class Element>
FASTCOMM_INLINE_LOOP void write_values(const float* __restrict__ sum, float factor, int count,
                                       Element* __restrict__ out) {
  for (int i = 0; i < count; ++i) out[i] = to_result<Element>(sum[i] * factor);
}

// out = to_result(factor * decode(section 0)), of whole blocks.
template <class C, class Element>
FASTCOMM_BLOCK_LOOP void decode_blocks(const DecodeArguments& arguments, int64_t end_block,
                                       bool streams) {
  constexpr int kUnits = kBlockUnits<C>;
  const SectionView<C, const std::byte> section(arguments.sections[0], arguments.num_elements);
  const float factor = arguments.factor;
  alignas(64) Element stash[C::kBlockElements];
  for (int64_t block = arguments.first_block; block < end_block; ++block) {
    auto* const memory = static_cast<Element*>(arguments.out) + block * C::kBlockElements;
    Element* __restrict__ out = streams ? stash : memory;
    const auto* __restrict__ codes = section.block_codes(block);
    const BlockScale scale = block_scale<C>(section.scale(block));
    for (int plane = 0; plane < C::kElementsPerUnit; ++plane) {
      for (int unit = 0; unit < kUnits; ++unit) {
        const float value = C::dequantize(code_in<C>(codes[unit], plane), scale);
        out[plane * kUnits + unit] = to_result<Element>(value * factor);
      }
    }
    if (streams) stream(stash, memory, C::kBlockElements);
  }
}

// In place of a rotated sum that is not finite: through the rotation, the signs of NaNs would
// depend on the processor.
inline void fill_with_nan(float* sum, int count) {
  for (int i = 0; i < count; ++i) sum[i] = bf16_to_float(kNonFiniteScale);
}

// out = to_result(factor * (decode(section 0) + decode(section 1) + ...)), of whole blocks.
template <class C, class Element, bool kStreams>
FASTCOMM_BLOCK_LOOP void sum_blocks(const DecodeArguments& arguments, int64_t end_block) {
  const SectionView<C, const std::byte> first(arguments.sections[0], arguments.num_elements);
  for (int64_t block = arguments.first_block; block < end_block; ++block) {
    alignas(64) float sum[C::kBlockElements];
    add_block<C, false>(first.block_codes(block), first.scale(block), sum);
    for (int index = 1; index < arguments.num_sections; ++index) {
      const SectionView<C, const std::byte> in(arguments.sections[index], arguments.num_elements);
      add_block<C, true>(in.block_codes(block), in.scale(block), sum);
    }
    if constexpr (C::kIsRotated) {
      if (is_finite(sum[0])) {
        rotate_back(sum, arguments.signs, sum);
      } else {
        fill_with_nan(sum, C::kBlockElements);
      }
    }
    auto* const memory = static_cast<Element*>(arguments.out) + block * C::kBlockElements;
    if constexpr (kStreams) {
      alignas(64) Element stash[C::kBlockElements];
      write_values(sum, arguments.factor, C::kBlockElements, stash);
      stream(stash, memory, C::kBlockElements);
    } else {
      write_values(sum, arguments.factor, C::kBlockElements, memory);
    }
  }
}

// The same of the last block, of `count` elements.
template <class C>
FASTCOMM_BLOCK_LOOP void sum_tail(const DecodeArguments& arguments, int64_t block, int count,
                                  float* sum) {
  const int units = (count + C::kElementsPerUnit - 1) / C::kElementsPerUnit;
  for (int index = 0; index < arguments.num_sections; ++index) {
    const SectionView<C, const std::byte> in(arguments.sections[index], arguments.num_elements);
    float added[C::kBlockElements];
    decode_tail<C>(in.block_codes(block), in.scale(block), units, added);
    for (int i = 0; i < count; ++i) sum[i] = index == 0 ? added[i] : sum[i] + added[i];
  }
  if constexpr (C::kIsRotated) {
    if (is_finite(sum[0])) {
      rotate_tail_back(sum, count, arguments.signs);
    } else {
      fill_with_nan(sum, count);
    }
  }
}

template <class Element>
FASTCOMM_BLOCK_LOOP void write_tail(const float* sum, float factor, int count, Element* out) {
  write_values(sum, factor, count, out);
}

template <class C>
void decode(DType dtype, const DecodeArguments& arguments) {
  constexpr int kBlock = C::kBlockElements;
  const int64_t num_full_blocks = arguments.num_elements / kBlock;
  const int64_t end_block = smaller(arguments.end_block, num_full_blocks);
  const int tail = static_cast<int>(arguments.num_elements - num_full_blocks * kBlock);
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    const size_t bytes = static_cast<size_t>(arguments.num_elements) * sizeof(Element);
    const bool streams = bytes >= kSmallestStreamedBytes;
    if (!C::kIsRotated && arguments.num_sections == 1) {
      decode_blocks<C, Element>(arguments, end_block, streams);
    } else if (streams) {
      sum_blocks<C, Element, true>(arguments, end_block);
    } else {
      sum_blocks<C, Element, false>(arguments, end_block);
    }
    if (tail > 0 && arguments.end_block > num_full_blocks) {
      alignas(64) float sum[kBlock];
      sum_tail<C>(arguments, num_full_blocks, tail, sum);
      write_tail(sum, arguments.factor, tail,
                 static_cast<Element*>(arguments.out) + num_full_blocks * kBlock);
    }
    if (streams) FASTCOMM_LOOPS_STREAM_END();
  });
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
