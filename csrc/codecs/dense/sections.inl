// What encoding and decoding share, for the loops of one instruction set; included by loops.inl.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

FASTCOMM_HOST_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
FASTCOMM_HOST_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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
