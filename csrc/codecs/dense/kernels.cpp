#include "codecs/dense/kernels.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "codecs/dense/codecs.h"
#include "codecs/payload.h"

// The same loops, compiled for each instruction set.
#define FASTCOMM_LOOPS_NAMESPACE baseline
#define FASTCOMM_LOOPS_TARGET
#include "codecs/dense/loops.inl"
#undef FASTCOMM_LOOPS_NAMESPACE
#undef FASTCOMM_LOOPS_TARGET

#if FASTCOMM_X86
#define FASTCOMM_LOOPS_NAMESPACE avx2
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX2
#include "codecs/dense/loops.inl"
#undef FASTCOMM_LOOPS_NAMESPACE
#undef FASTCOMM_LOOPS_TARGET

#define FASTCOMM_LOOPS_NAMESPACE avx512
#define FASTCOMM_LOOPS_TARGET FASTCOMM_TARGET_AVX512
#include "codecs/dense/loops.inl"
#undef FASTCOMM_LOOPS_NAMESPACE
#undef FASTCOMM_LOOPS_TARGET
#endif

namespace fastcomm {
namespace {

// Offsets of the parts of a section of `num_elements` elements.
struct SectionParts {
  SectionParts(const DenseFormat& format, int64_t num_elements) {
    const int64_t num_blocks = (num_elements + format.block_elements - 1) / format.block_elements;
    const int64_t num_units =
        (num_elements + format.elements_per_unit - 1) / format.elements_per_unit;
    scales_bytes = format.has_scale ? num_blocks * static_cast<int64_t>(sizeof(uint16_t)) : 0;
    codes_offset = align_up(scales_bytes, kSectionAlignment);
    codes_end = codes_offset + num_units * format.unit_bytes;
    section_bytes = align_up(codes_end, kSectionAlignment);
  }
  int64_t scales_bytes, codes_offset, codes_end, section_bytes;
};

template <class C>
DenseFormat make_format() {
  DenseFormat format{C::kName,
                     C::kWireId,
                     C::kBlockElements,
                     C::kElementsPerUnit,
                     static_cast<int>(sizeof(typename C::Unit)),
                     C::kHasScale,
                     {}};
  format.kernels[static_cast<int>(Isa::kBaseline)] = {baseline::encode<C>, baseline::decode<C>};
#if FASTCOMM_X86
  format.kernels[static_cast<int>(Isa::kAvx2)] = {avx2::encode<C>, avx2::decode<C>};
  format.kernels[static_cast<int>(Isa::kAvx512)] = {avx512::encode<C>, avx512::decode<C>};
#endif
  return format;
}

template <int kWireId>
void append_format(std::vector<DenseFormat>& formats) {
  if constexpr (requires { typename DenseCodecOfWireId<kWireId>::type; }) {
    formats.push_back(make_format<typename DenseCodecOfWireId<kWireId>::type>());
  }
}

template <int... kWireIds>
std::vector<DenseFormat> make_formats(std::integer_sequence<int, kWireIds...>) {
  std::vector<DenseFormat> formats;
  (append_format<kWireIds>(formats), ...);
  return formats;
}

}  // namespace

int64_t DenseFormat::section_bytes(int64_t num_elements) const {
  return SectionParts(*this, num_elements).section_bytes;
}

void DenseFormat::encode(Isa isa, DType dtype, const EncodeArguments& arguments) const {
  // Padding is part of the payload: it is zero, so that same inputs give same bytes.
  const SectionParts parts(*this, arguments.num_elements);
  std::memset(arguments.section + parts.scales_bytes, 0,
              static_cast<size_t>(parts.codes_offset - parts.scales_bytes));
  std::memset(arguments.section + parts.codes_end, 0,
              static_cast<size_t>(parts.section_bytes - parts.codes_end));
  kernels[static_cast<int>(isa)].encode(dtype, arguments);
}

void DenseFormat::decode(Isa isa, DType dtype, const DecodeArguments& arguments) const {
  kernels[static_cast<int>(isa)].decode(dtype, arguments);
}

const std::vector<DenseFormat>& dense_formats() {
  static const std::vector<DenseFormat> formats =
      make_formats(std::make_integer_sequence<int, kNumWireIds>{});
  return formats;
}

const DenseFormat& dense_format(std::string_view name) {
  for (const DenseFormat& format : dense_formats()) {
    if (format.name == name) return format;
  }
  FASTCOMM_FAIL("there is no dense codec '" << name << "'");
}

}  // namespace fastcomm
