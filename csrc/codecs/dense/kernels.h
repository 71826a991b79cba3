#pragma once
// The dense codecs at run time: their formats, and their loops for each instruction set.
//
// A *section* is the body of one contiguous piece of elements: the bf16 scales of its blocks, if
// the codec has scales, then the units of its blocks. Each part starts 16-byte aligned.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/isa.h"

namespace fastcomm {

struct EncodeArguments {
  const void* gradient;       // num_elements elements of the given dtype
  float* residual;            // num_elements, updated in place; nullptr: no error feedback
  const std::byte* received;  // section to accumulate first; nullptr: none
  std::byte* section;         // written
  int64_t num_elements;
};

struct DecodeArguments {
  const std::byte* const* sections;  // num_sections sections, summed in this order
  int num_sections;
  void* out;     // num_elements elements of the given dtype
  float factor;  // multiplies the sum
  int64_t num_elements;
};

// The loops of one codec on one instruction set.
struct DenseKernels {
  // value = gradient + residual + decode(received); section = encode(value);
  // residual = value - decode(section), or its previous value where `value` is not finite.
  void (*encode)(DType, const EncodeArguments&);
  // out = factor * (decode(section 0) + decode(section 1) + ...)
  void (*decode)(DType, const DecodeArguments&);
};

struct DenseFormat {
  std::string_view name;
  uint8_t wire_id;
  int block_elements;
  int elements_per_unit;
  int unit_bytes;
  bool has_scale;
  DenseKernels kernels[kNumIsas];

  int64_t section_bytes(int64_t num_elements) const;  // a multiple of the section alignment
  void encode(Isa isa, DType dtype, const EncodeArguments& arguments) const;
  void decode(Isa isa, DType dtype, const DecodeArguments& arguments) const;
};

const std::vector<DenseFormat>& dense_formats();

// Throws Error if there is no such codec.
const DenseFormat& dense_format(std::string_view name);

}  // namespace fastcomm
