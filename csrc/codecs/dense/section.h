#pragma once
// Sections, blocks and codes, for the loops of every instruction set and for CUDA kernels.

#include <cstdint>
#include <type_traits>

#include "codecs/dense/concept.h"
#include "codecs/payload.h"
#include "core/dtype.h"

namespace fastcomm {

template <class C>
FASTCOMM_HOST_DEVICE BlockScale block_scale(uint16_t wire_scale) {
  const float scale = bf16_to_float(wire_scale);
  return {scale, scale > 0.0f ? 1.0f / scale : 0.0f};
}

// The wire scale of a block whose statistic has these bits: kNonFiniteScale where the block cannot
// be scaled, 0 where it is negligible.
template <class C>
FASTCOMM_HOST_DEVICE uint16_t choose_wire_scale(uint32_t statistic) {
  if (statistic >= (C::kIsRotated ? kLargestRotatableBits : kLargestScalableBits)) {
    return kNonFiniteScale;
  }
  if (statistic < kSmallestScalableBits) return 0;
  return C::wire_scale(bits_float(statistic));
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

  FASTCOMM_HOST_DEVICE SectionView(Byte* section, int64_t num_elements) {
    const int64_t num_blocks = (num_elements + C::kBlockElements - 1) / C::kBlockElements;
    scales = reinterpret_cast<Scale*>(section);
    codes = reinterpret_cast<Unit*>(
        section + (kHasScale<C> ? align_up(num_blocks * 2, kSectionAlignment) : 0));
  }
  FASTCOMM_HOST_DEVICE uint16_t scale(int64_t block) const {
    return kHasScale<C> ? scales[block] : uint16_t{0};
  }
  FASTCOMM_HOST_DEVICE Unit* block_codes(int64_t block) const {
    return codes + block * (C::kBlockElements / C::kElementsPerUnit);
  }

  Scale* scales;
  Unit* codes;
};

}  // namespace fastcomm
