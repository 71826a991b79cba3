// What encoding and decoding share, for the loops of one instruction set; included by loops.inl.
//
// A *block loop* is a function that works on one whole block, in the L1 cache: encoding and
// decoding are calls of a few of them for each block. They are not inlined. A block takes much
// longer than a call, and the combinations of codec, dtype and what is there (a residual, payloads
// of other ranks) are thirty times as many as the loops: each one compiled for itself took minutes.
//
// The last block of a section, if it is shorter, is padded to a whole one, so that the number of
// elements is a constant in every loop. In the codes of `units` units, element p * units + unit is
// in plane p; of a whole block, there are other elements in it: copy_planes() moves them.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

#define FASTCOMM_BLOCK_LOOP FASTCOMM_LOOPS_TARGET __attribute__((noinline))

FASTCOMM_HOST_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
FASTCOMM_HOST_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class C>
inline constexpr int kBlockUnits = C::kBlockElements / C::kElementsPerUnit;

// sum (+)= decode(codes of a block)
template <class C, bool kAccumulate>
FASTCOMM_INLINE_LOOP void add_block(const typename C::Unit* __restrict__ codes, uint16_t wire_scale,
                                    float* __restrict__ sum) {
  constexpr int kUnits = kBlockUnits<C>;
  const BlockScale scale = block_scale<C>(wire_scale);
  for (int plane = 0; plane < C::kElementsPerUnit; ++plane) {
    for (int unit = 0; unit < kUnits; ++unit) {
      const float value = C::dequantize(code_in<C>(codes[unit], plane), scale);
      float& out = sum[plane * kUnits + unit];
      out = kAccumulate ? out + value : value;
    }
  }
}

// Copies `units` elements of each plane between blocks with different numbers of units.
template <class Element>
void copy_planes(const Element* from, int from_units, Element* to, int to_units, int num_planes,
                 int units) {
  for (int plane = 0; plane < num_planes; ++plane) {
    std::memcpy(to + plane * to_units, from + plane * from_units,
                static_cast<size_t>(units) * sizeof(Element));
  }
}

// The values of a block that is not whole, in the order of its elements.
template <class C>
FASTCOMM_BLOCK_LOOP void decode_tail(const typename C::Unit* codes, uint16_t wire_scale, int units,
                                     float* values) {
  typename C::Unit padded_codes[kBlockUnits<C>] = {};
  float padded_values[C::kBlockElements];
  std::memcpy(padded_codes, codes, static_cast<size_t>(units) * sizeof(typename C::Unit));
  add_block<C, false>(padded_codes, wire_scale, padded_values);
  copy_planes(padded_values, kBlockUnits<C>, values, units, C::kElementsPerUnit, units);
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
