// The decoding loops for one instruction set; included by loops.inl.
//
// A block is summed in a stash that stays in the L1 cache, then written once.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

// out = to_result(factor * sum)
template <class Element>
FASTCOMM_INLINE_LOOP void scale_block(const float* __restrict__ sum, float factor, int count,
                                      Element* __restrict__ out) {
  for (int i = 0; i < count; ++i) out[i] = to_result<Element>(sum[i] * factor);
}

// out = to_result(factor * (decode(section 0) + decode(section 1) + ...)), of one block, padding
// included.
template <class C, class Element>
FASTCOMM_INLINE_LOOP void sum_block(const DecodeArguments& arguments, int64_t block, int count,
                                    int units, Element* __restrict__ out) {
  auto section = [&](int index) {
    return SectionView<C, const std::byte>(arguments.sections[index], arguments.num_elements);
  };
  const int padded_count = units * C::kElementsPerUnit;
  const auto first = section(0);
  if (!C::kIsRotated && arguments.num_sections == 1) {
    const auto* __restrict__ codes = first.block_codes(block);
    const BlockScale scale = block_scale<C>(first.scale(block));
    for (int plane = 0; plane < C::kElementsPerUnit; ++plane) {
      for (int unit = 0; unit < units; ++unit) {
        const float value = C::dequantize(code_in<C>(codes[unit], plane), scale);
        out[plane * units + unit] = to_result<Element>(value * arguments.factor);
      }
    }
    return;
  }
  alignas(64) float sum[C::kBlockElements];
  add_block<C, false>(units, first.block_codes(block), first.scale(block), sum);
  for (int index = 1; index < arguments.num_sections; ++index) {
    const auto in = section(index);
    add_block<C, true>(units, in.block_codes(block), in.scale(block), sum);
  }
  if constexpr (C::kIsRotated) {
    // Through the rotation, the signs of NaNs would depend on the processor.
    if (is_finite(sum[0])) {
      rotate_back(sum, count, arguments.signs, sum);
    } else {
      for (int i = 0; i < count; ++i) sum[i] = bf16_to_float(kNonFiniteScale);
    }
  }
  scale_block(sum, arguments.factor, padded_count, out);
}

template <class C, class Element, bool kStreams>
FASTCOMM_LOOPS_TARGET void decode_section(const DecodeArguments& arguments) {
  constexpr int kBlock = C::kBlockElements;
  constexpr int kUnits = kBlock / C::kElementsPerUnit;
  alignas(64) Element stash[kBlock];
  auto* out = static_cast<Element*>(arguments.out);
  const int64_t num_full_blocks = arguments.num_elements / kBlock;
  const int64_t end_block = smaller(arguments.end_block, num_full_blocks);
  for (int64_t block = arguments.first_block; block < end_block; ++block) {
    if constexpr (kStreams) {
      sum_block<C>(arguments, block, kBlock, kUnits, stash);
      stream(stash, out + block * kBlock, kBlock);
    } else {
      sum_block<C>(arguments, block, kBlock, kUnits, out + block * kBlock);
    }
  }
  const int tail = static_cast<int>(arguments.num_elements - num_full_blocks * kBlock);
  if (tail > 0 && arguments.end_block > num_full_blocks) {
    const int units = (tail + C::kElementsPerUnit - 1) / C::kElementsPerUnit;
    sum_block<C>(arguments, num_full_blocks, tail, units, stash);
    std::memcpy(out + num_full_blocks * kBlock, stash, static_cast<size_t>(tail) * sizeof(Element));
  }
  if constexpr (kStreams) FASTCOMM_LOOPS_STREAM_END();
}

template <class C>
void decode(DType dtype, const DecodeArguments& arguments) {
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    const size_t bytes = static_cast<size_t>(arguments.num_elements) * sizeof(Element);
    if (bytes >= kSmallestStreamedBytes) {
      decode_section<C, Element, true>(arguments);
    } else {
      decode_section<C, Element, false>(arguments);
    }
  });
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
