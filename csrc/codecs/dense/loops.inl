// The loops around the element math of a dense codec, for one instruction set.
//
// No include guard: kernels.cpp includes this file once for each instruction set, with
//   FASTCOMM_LOOPS_NAMESPACE  the namespace of the instruction set
//   FASTCOMM_LOOPS_TARGET     its function attribute
//
// Encode runs two loops per block. The first accumulates gradient + residual + received into a
// stash that stays in the L1 cache and finds the largest magnitude; the second quantizes the
// stash and writes codes and residual. Memory is read and written once. The largest magnitude is
// a maximum over integers, which every compiler vectorizes, and which carries Inf and NaN.
//
// The residual is only written by the second loop, so that a block that turns out to be
// non-finite leaves its previous residual untouched.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

template <class C>
FASTCOMM_HOST_DEVICE BlockScale block_scale(uint16_t wire_scale) {
  const float scale = bf16_to_float(wire_scale);
  return {scale, scale > 0.0f ? 1.0f / scale : 0.0f};
}

// One block of units * kElementsPerUnit elements; `units` is a constant in the loop over whole
// blocks. Padding after the last element of a piece is zero on input.
template <class C, class Element, bool kHasResidual, bool kHasReceived>
FASTCOMM_LOOPS_TARGET inline __attribute__((always_inline)) void encode_block(
    int units, const Element* __restrict__ gradient, float* __restrict__ residual,
    const typename C::Unit* __restrict__ received, uint16_t received_scale,
    typename C::Unit* __restrict__ codes, uint16_t* __restrict__ scale_out) {
  constexpr int kPlanes = C::kElementsPerUnit;
  constexpr uint32_t kCodeMask = kCodeBits<C> == 32 ? ~0u : (1u << (kCodeBits<C> % 32)) - 1;
  alignas(64) float stash[C::kBlockElements];
  uint32_t absmax = 0;
  const BlockScale incoming = block_scale<C>(received_scale);
  for (int plane = 0; plane < kPlanes; ++plane) {
    const int first = plane * units;
    for (int unit = 0; unit < units; ++unit) {
      float value = to_float(gradient[first + unit]);
      if constexpr (kHasResidual) value += residual[first + unit];
      if constexpr (kHasReceived) {
        const uint32_t code = (uint32_t{received[unit]} >> (plane * kCodeBits<C>)) & kCodeMask;
        value += C::dequantize(code, incoming);
      }
      stash[first + unit] = value;
      const uint32_t magnitude = magnitude_bits(value);
      absmax = magnitude > absmax ? magnitude : absmax;
    }
  }

  BlockScale scale{};
  if constexpr (C::kHasScale) {
    const bool non_finite = absmax >= kLargestScalableBits;
    const bool negligible = absmax < kSmallestScalableBits;
    *scale_out = non_finite ? kNonFiniteScale : negligible ? uint16_t{0} : C::wire_scale(absmax);
    if (non_finite || negligible) {
      std::memset(codes, 0, static_cast<size_t>(units) * sizeof(typename C::Unit));
      if (kHasResidual && negligible) {
        std::memcpy(residual, stash, static_cast<size_t>(units * kPlanes) * sizeof(float));
      }
      return;
    }
    scale = block_scale<C>(*scale_out);
  }

  for (int unit = 0; unit < units; ++unit) {
    uint32_t packed = 0;
    for (int plane = 0; plane < kPlanes; ++plane) {
      const float value = stash[plane * units + unit];
      const uint32_t code = C::quantize(value, scale);
      packed |= code << (plane * kCodeBits<C> % 32);
      if constexpr (kHasResidual) {
        const float left_out = value - C::dequantize(code, scale);
        if constexpr (C::kHasScale) {
          residual[plane * units + unit] = left_out;
        } else {
          // Without a scale, non-finite values are a matter of each element.
          const float previous = residual[plane * units + unit];
          residual[plane * units + unit] = is_finite(left_out) ? left_out : previous;
        }
      }
    }
    codes[unit] = static_cast<typename C::Unit>(packed);
  }
}

// Where the parts of a section of `num_elements` elements are.
template <class C, class Byte>
struct SectionView {
  using Unit = std::conditional_t<std::is_const_v<Byte>, const typename C::Unit, typename C::Unit>;
  using Scale = std::conditional_t<std::is_const_v<Byte>, const uint16_t, uint16_t>;

  SectionView(Byte* section, int64_t num_elements) {
    const int64_t num_blocks = (num_elements + C::kBlockElements - 1) / C::kBlockElements;
    scales = reinterpret_cast<Scale*>(section);
    codes = reinterpret_cast<Unit*>(
        section + (C::kHasScale ? align_up(num_blocks * 2, kSectionAlignment) : 0));
  }
  uint16_t scale(int64_t block) const { return C::kHasScale ? scales[block] : uint16_t{0}; }

  Scale* scales;
  Unit* codes;
};

template <class C, class Element, bool kHasResidual, bool kHasReceived>
FASTCOMM_LOOPS_TARGET void encode_section(const EncodeArguments& arguments) {
  constexpr int kBlock = C::kBlockElements;
  constexpr int kUnits = kBlock / C::kElementsPerUnit;
  const auto* gradient = static_cast<const Element*>(arguments.gradient);
  const SectionView<C, std::byte> out(arguments.section, arguments.num_elements);
  const SectionView<C, const std::byte> in(kHasReceived ? arguments.received : arguments.section,
                                           arguments.num_elements);
  const int64_t num_full_blocks = arguments.num_elements / kBlock;
  for (int64_t block = 0; block < num_full_blocks; ++block) {
    const int64_t first = block * kBlock;
    encode_block<C, Element, kHasResidual, kHasReceived>(
        kUnits, gradient + first, kHasResidual ? arguments.residual + first : nullptr,
        kHasReceived ? in.codes + block * kUnits : nullptr, kHasReceived ? in.scale(block) : 0,
        out.codes + block * kUnits, out.scales + block);
  }

  const int tail = static_cast<int>(arguments.num_elements - num_full_blocks * kBlock);
  if (tail == 0) return;
  const int64_t first = num_full_blocks * kBlock;
  const int units = (tail + C::kElementsPerUnit - 1) / C::kElementsPerUnit;
  Element padded_gradient[kBlock] = {};
  float padded_residual[kBlock] = {};
  std::memcpy(padded_gradient, gradient + first, static_cast<size_t>(tail) * sizeof(Element));
  if (kHasResidual) {
    std::memcpy(padded_residual, arguments.residual + first,
                static_cast<size_t>(tail) * sizeof(float));
  }
  encode_block<C, Element, kHasResidual, kHasReceived>(
      units, padded_gradient, padded_residual,
      kHasReceived ? in.codes + num_full_blocks * kUnits : nullptr,
      kHasReceived ? in.scale(num_full_blocks) : 0, out.codes + num_full_blocks * kUnits,
      out.scales + num_full_blocks);
  if (kHasResidual) {
    std::memcpy(arguments.residual + first, padded_residual,
                static_cast<size_t>(tail) * sizeof(float));
  }
}

// sum (+)= decode(one block)
template <class C, bool kAccumulate>
FASTCOMM_LOOPS_TARGET inline __attribute__((always_inline)) void add_block(
    int units, const typename C::Unit* __restrict__ codes, uint16_t wire_scale,
    float* __restrict__ sum) {
  constexpr uint32_t kCodeMask = kCodeBits<C> == 32 ? ~0u : (1u << (kCodeBits<C> % 32)) - 1;
  const BlockScale scale = block_scale<C>(wire_scale);
  for (int plane = 0; plane < C::kElementsPerUnit; ++plane) {
    for (int unit = 0; unit < units; ++unit) {
      const uint32_t code = (uint32_t{codes[unit]} >> (plane * kCodeBits<C>)) & kCodeMask;
      const float value = C::dequantize(code, scale);
      float& out = sum[plane * units + unit];
      out = kAccumulate ? out + value : value;
    }
  }
}

template <class C, class Element>
FASTCOMM_LOOPS_TARGET void decode_section(const DecodeArguments& arguments) {
  constexpr int kBlock = C::kBlockElements;
  constexpr int kUnits = kBlock / C::kElementsPerUnit;
  auto* out = static_cast<Element*>(arguments.out);
  alignas(64) float sum[kBlock];
  for (int64_t first = 0; first < arguments.num_elements; first += kBlock) {
    const int64_t block = first / kBlock;
    const bool is_full = arguments.num_elements - first >= kBlock;
    const int count = is_full ? kBlock : static_cast<int>(arguments.num_elements - first);
    const int units = (count + C::kElementsPerUnit - 1) / C::kElementsPerUnit;
    for (int index = 0; index < arguments.num_sections; ++index) {
      const SectionView<C, const std::byte> in(arguments.sections[index], arguments.num_elements);
      const auto* codes = in.codes + block * kUnits;
      if (index == 0 && is_full) {
        add_block<C, false>(kUnits, codes, in.scale(block), sum);
      } else if (index == 0) {
        add_block<C, false>(units, codes, in.scale(block), sum);
      } else if (is_full) {
        add_block<C, true>(kUnits, codes, in.scale(block), sum);
      } else {
        add_block<C, true>(units, codes, in.scale(block), sum);
      }
    }
    if (is_full) {
      for (int i = 0; i < kBlock; ++i)
        out[first + i] = from_float<Element>(sum[i] * arguments.factor);
    } else {
      for (int i = 0; i < count; ++i)
        out[first + i] = from_float<Element>(sum[i] * arguments.factor);
    }
  }
}

template <class C>
void encode(DType dtype, const EncodeArguments& arguments) {
  const bool has_residual = arguments.residual != nullptr;
  const bool has_received = arguments.received != nullptr;
  visit_dtype(dtype, [&](auto element) {
    using Element = decltype(element);
    if (has_residual && has_received) return encode_section<C, Element, true, true>(arguments);
    if (has_residual) return encode_section<C, Element, true, false>(arguments);
    if (has_received) return encode_section<C, Element, false, true>(arguments);
    return encode_section<C, Element, false, false>(arguments);
  });
}

template <class C>
void decode(DType dtype, const DecodeArguments& arguments) {
  visit_dtype(dtype, [&](auto element) { decode_section<C, decltype(element)>(arguments); });
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
