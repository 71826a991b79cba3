#pragma once
// The dense codecs at run time: their formats, and their loops for each instruction set.
//
// A *section* is the body of one contiguous piece of elements: the bf16 scales of its blocks, if
// the codec has scales, then the units of its blocks. Each part starts 16-byte aligned.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "codecs/dense/concept.h"
#include "codecs/dense/rotation.h"
#include "core/dtype.h"
#include "core/isa.h"

namespace fastcomm {

// What makes the random words of stochastic rounding: pure functions of these and of the element.
struct RoundingNoise {
  uint32_t seed;
  uint32_t rank;
  uint32_t step;
  uint32_t bucket;
  int64_t first_element;  // index of the section's first element in its bucket
};

// Blocks first_block .. end_block - 1 of a section; the last block of a section may be a tail.
struct EncodeArguments {
  const void* gradient;              // num_elements elements of the given dtype
  float* residual;                   // num_elements, updated in place; nullptr: no error feedback
  const std::byte* const* received;  // num_received sections that are added first, in this order
  int num_received;
  std::byte* section;  // written
  int64_t num_elements;
  int64_t first_block, end_block;
  const RotationSigns* signs;  // of a rotated codec; nullptr: leave the rotation out
  const RoundingNoise* noise;  // nullptr: round to nearest; else there must be no residual
};

struct DecodeArguments {
  const std::byte* const* sections;  // num_sections sections, summed in this order
  int num_sections;
  void* out;     // num_elements elements of the given dtype
  float factor;  // multiplies the sum
  int64_t num_elements;
  int64_t first_block, end_block;
  const RotationSigns* signs;  // as above
};

// The loops of one codec on one instruction set.
struct DenseKernels {
  // value = gradient + residual + decode(received...); section = encode(value);
  // residual = value - decode(section), or its previous value where `value` is not finite.
  void (*encode)(DType, const EncodeArguments&);
  // out = factor * (decode(section 0) + decode(section 1) + ...)
  void (*decode)(DType, const DecodeArguments&);
};

// The loops of all codecs on one instruction set, by wire id.
using DenseKernelTable = std::array<DenseKernels, kNumWireIds>;
DenseKernelTable dense_kernels_baseline();
DenseKernelTable dense_kernels_avx2();
DenseKernelTable dense_kernels_avx512();

struct DenseFormat {
  std::string_view name;
  uint8_t wire_id;
  int block_elements;
  int elements_per_unit;
  int unit_bytes;
  bool has_scale;
  bool is_rotated;
  bool has_stochastic_rounding;
  DenseKernels kernels[kNumIsas];

  int64_t num_blocks(int64_t num_elements) const;
  int64_t codes_offset(int64_t num_elements) const;  // in the section
  int64_t block_bytes() const { return int64_t{block_elements} / elements_per_unit * unit_bytes; }
  int64_t section_bytes(int64_t num_elements) const;  // a multiple of the section alignment
  // Zeroes the padding of a section: it is part of the payload, and same inputs give same bytes.
  void clear_padding(std::byte* section, int64_t num_elements) const;
  const DenseKernels& kernels_of(Isa isa) const { return kernels[static_cast<int>(isa)]; }
};

const std::vector<DenseFormat>& dense_formats();

// Throws Error if there is no such codec.
const DenseFormat& dense_format(std::string_view name);

}  // namespace fastcomm
