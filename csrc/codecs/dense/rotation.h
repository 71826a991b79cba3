#pragma once
// The randomized Hadamard rotation of the few-bit codecs.
//
// A block x of m elements is *rotated* into H (s * x) / sqrt(m), where s are fixed random signs and
// H is the Hadamard matrix in natural order, applied as log2(m) stages of butterflies (a, b) ->
// (a + b, a - b) at distance 1, 2, 4, ... An orthogonal matrix: lengths and sums of squares stay.
// The rotated values are nearly Gaussian whatever x is, so that few levels serve all blocks alike;
// one outlier is spread over the block. Suresh et al., "Distributed mean estimation with limited
// communication", ICML 2017, section 3.
//
// The *tail* of a section, shorter than a block, is rotated in pieces whose sizes are the powers of
// two in the binary representation of its length, the largest first: as many values come out as go
// in.
//
// Payloads hold rotated values, which are summed as they are from hop to hop and rotated back once,
// at the end. Residuals are kept in the basis of the gradient: a rotation in registers costs less
// than the memory traffic that hides it, and a residual then means the same whatever the bucket's
// cut, the codec (during warm-up), or the world size.

#include <cstdint>

#include "core/philox.h"

namespace fastcomm {

inline constexpr int kRotationElements = 256;

// The signs s, as bits to flip: 0 or 0x80000000 for each element of a block.
struct RotationSigns {
  alignas(64) uint32_t flips[kRotationElements];
};

// Element i's sign is the lowest bit of word i % 4 of Philox block i / 4 with the key (seed, 0).
inline RotationSigns make_rotation_signs(uint32_t seed) {
  RotationSigns signs;
  for (uint32_t i = 0; i < kRotationElements; i += 4) {
    const PhiloxWords random = philox({{i / 4, 0, 0, 0}}, {{seed, 0}});
    for (uint32_t j = 0; j < 4; ++j) signs.flips[i + j] = random.word[j] << 31;
  }
  return signs;
}

}  // namespace fastcomm
