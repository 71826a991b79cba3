// Sections, blocks and codes, for the loops of one instruction set; included by loops.inl.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

FASTCOMM_HOST_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
FASTCOMM_HOST_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class C>
FASTCOMM_HOST_DEVICE BlockScale block_scale(uint16_t wire_scale) {
  const float scale = bf16_to_float(wire_scale);
  return {scale, scale > 0.0f ? 1.0f / scale : 0.0f};
}

// The code of one plane in a unit.
template <class C>
FASTCOMM_HOST_DEVICE uint32_t code_in(typename C::Unit unit, int plane) {
  constexpr uint32_t kMask = kCodeBits<C> == 32 ? ~0u : (1u << (kCodeBits<C> % 32)) - 1;
  return (uint32_t{unit} >> (plane * kCodeBits<C>)) & kMask;
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
        section + (kHasScale<C> ? align_up(num_blocks * 2, kSectionAlignment) : 0));
  }
  uint16_t scale(int64_t block) const { return kHasScale<C> ? scales[block] : uint16_t{0}; }
  Unit* block_codes(int64_t block) const {
    return codes + block * (C::kBlockElements / C::kElementsPerUnit);
  }

  Scale* scales;
  Unit* codes;
};

// sum (+)= decode(one block of `units` units)
template <class C, bool kAccumulate>
FASTCOMM_INLINE_LOOP void add_block(int units, const typename C::Unit* __restrict__ codes,
                                    uint16_t wire_scale, float* __restrict__ sum) {
  const BlockScale scale = block_scale<C>(wire_scale);
  for (int plane = 0; plane < C::kElementsPerUnit; ++plane) {
    for (int unit = 0; unit < units; ++unit) {
      const float value = C::dequantize(code_in<C>(codes[unit], plane), scale);
      float& out = sum[plane * units + unit];
      out = kAccumulate ? out + value : value;
    }
  }
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
