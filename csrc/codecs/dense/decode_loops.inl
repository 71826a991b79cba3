// Decoding of a dense codec, block by block, for one instruction set; included by loops.inl.
//
// A block is summed in a stash that stays in the L1 cache, then written once.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

// out = to_result(factor * sum)
template <int kElements, class Element>
FASTCOMM_BLOCK_LOOP void write_block(const float* __restrict__ sum, float factor, bool streams,
                                     void* result) {
  alignas(64) Element stash[kElements];
  auto* const memory = static_cast<Element*>(result);
  Element* __restrict__ out = streams ? stash : memory;
  for (int i = 0; i < kElements; ++i) out[i] = to_result<Element>(sum[i] * factor);
  if (streams) stream(stash, memory, kElements);
}

// out = to_result(factor * decode(section)), of whole blocks.
template <class C, class Element>
FASTCOMM_BLOCK_LOOP void decode_blocks(SectionView<C, const std::byte> section, int64_t first_block,
                                       int64_t end_block, float factor, bool streams,
                                       void* result) {
  constexpr int kUnits = kBlockUnits<C>;
  alignas(64) Element stash[C::kBlockElements];
  for (int64_t block = first_block; block < end_block; ++block) {
    auto* const memory = static_cast<Element*>(result) + block * C::kBlockElements;
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

// The loops that a section takes.
template <class C>
struct DecodeLoops {
  void (*write_block)(const float* sum, float factor, bool streams, void* out);
  void (*decode_blocks)(SectionView<C, const std::byte> section, int64_t first_block,
                        int64_t end_block, float factor, bool streams,
                        void* out);  // not of a rotated codec
};

template <class C>
DecodeLoops<C> decode_loops(DType dtype) {
  DecodeLoops<C> loops{};
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    loops.write_block = write_block<C::kBlockElements, Element>;
    if constexpr (!C::kIsRotated) loops.decode_blocks = decode_blocks<C, Element>;
  });
  return loops;
}

// In place of a rotated sum that is not finite: through the rotation, the signs of NaNs would
// depend on the processor.
inline void fill_with_nan(float* sum, int count) {
  for (int i = 0; i < count; ++i) sum[i] = bf16_to_float(kNonFiniteScale);
}

// out = to_result(factor * (decode(section 0) + decode(section 1) + ...)), of a whole block.
template <class C>
FASTCOMM_INLINE_LOOP void sum_block(const DecodeArguments& arguments, const DecodeLoops<C>& loops,
                                    int64_t block, bool streams, std::byte* out) {
  alignas(64) float sum[C::kBlockElements];
  const SectionView<C, const std::byte> first(arguments.sections[0], arguments.num_elements);
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
  loops.write_block(sum, arguments.factor, streams, out);
}

// The same of the last block, of `count` elements.
template <class C>
FASTCOMM_BLOCK_LOOP void sum_tail(const DecodeArguments& arguments, const DecodeLoops<C>& loops,
                                  int64_t block, int count, int element_bytes, std::byte* out) {
  const int units = (count + C::kElementsPerUnit - 1) / C::kElementsPerUnit;
  alignas(64) float sum[C::kBlockElements] = {};
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
  alignas(64) std::byte padded_out[C::kBlockElements * sizeof(float)];
  loops.write_block(sum, arguments.factor, false, padded_out);
  std::memcpy(out, padded_out, static_cast<size_t>(count * element_bytes));
}

template <class C>
FASTCOMM_LOOPS_TARGET void decode(DType dtype, const DecodeArguments& arguments) {
  constexpr int kBlock = C::kBlockElements;
  const auto loops = decode_loops<C>(dtype);
  const auto element_bytes = static_cast<int>(dtype_bytes(dtype));
  const int block_bytes = kBlock * element_bytes;
  const bool streams =
      static_cast<size_t>(arguments.num_elements * element_bytes) >= kSmallestStreamedBytes;
  auto* const out = static_cast<std::byte*>(arguments.out);
  const int64_t num_full_blocks = arguments.num_elements / kBlock;
  const int64_t end_block = smaller(arguments.end_block, num_full_blocks);
  if (!C::kIsRotated && arguments.num_sections == 1) {
    loops.decode_blocks({arguments.sections[0], arguments.num_elements}, arguments.first_block,
                        end_block, arguments.factor, streams, out);
  } else {
    for (int64_t block = arguments.first_block; block < end_block; ++block) {
      sum_block<C>(arguments, loops, block, streams, out + block * block_bytes);
    }
  }
  if (streams) FASTCOMM_LOOPS_STREAM_END();
  const int tail = static_cast<int>(arguments.num_elements - num_full_blocks * kBlock);
  if (tail > 0 && arguments.end_block > num_full_blocks) {
    sum_tail<C>(arguments, loops, num_full_blocks, tail, element_bytes,
                out + num_full_blocks * block_bytes);
  }
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
