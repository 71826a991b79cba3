#include "codecs/dense/kernels.h"

#include <cstring>
#include <utility>

#include "codecs/dense/codecs.h"
#include "codecs/payload.h"

namespace fastcomm {
namespace {

// Offsets of the parts of a section of `num_elements` elements.
struct SectionParts {
  SectionParts(const DenseFormat& format, int64_t num_elements) {
    const int64_t num_units =
        (num_elements + format.elements_per_unit - 1) / format.elements_per_unit;
    scales_bytes = format.has_scale ? format.num_blocks(num_elements) * 2 : 0;
    codes_offset = align_up(scales_bytes, kSectionAlignment);
    codes_end = codes_offset + num_units * format.unit_bytes;
    section_bytes = align_up(codes_end, kSectionAlignment);
  }
  int64_t scales_bytes, codes_offset, codes_end, section_bytes;
};

struct KernelTables {
  DenseKernelTable of_isa[kNumIsas];
};

template <int kWireId>
void append_format(std::vector<DenseFormat>& formats, const KernelTables& tables) {
  if constexpr (requires { typename DenseCodecOfWireId<kWireId>::type; }) {
    using C = typename DenseCodecOfWireId<kWireId>::type;
    DenseFormat format{C::kName,
                       C::kWireId,
                       C::kBlockElements,
                       C::kElementsPerUnit,
                       static_cast<int>(sizeof(typename C::Unit)),
                       kHasScale<C>,
                       C::kIsRotated,
                       StochasticCodec<C>,
                       {}};
    for (int isa = 0; isa < kNumIsas; ++isa) format.kernels[isa] = tables.of_isa[isa][kWireId];
    formats.push_back(format);
  }
}

template <int... kWireIds>
std::vector<DenseFormat> make_formats(std::integer_sequence<int, kWireIds...>) {
  const KernelTables tables{{
      dense_kernels_baseline(),
#if FASTCOMM_X86
      dense_kernels_avx2(),
      dense_kernels_avx512(),
#endif
  }};
  std::vector<DenseFormat> formats;
  (append_format<kWireIds>(formats, tables), ...);
  return formats;
}

}  // namespace

int64_t DenseFormat::num_blocks(int64_t num_elements) const {
  return (num_elements + block_elements - 1) / block_elements;
}

int64_t DenseFormat::codes_offset(int64_t num_elements) const {
  return SectionParts(*this, num_elements).codes_offset;
}

int64_t DenseFormat::section_bytes(int64_t num_elements) const {
  return SectionParts(*this, num_elements).section_bytes;
}

void DenseFormat::clear_padding(std::byte* section, int64_t num_elements) const {
  const SectionParts parts(*this, num_elements);
  std::memset(section + parts.scales_bytes, 0,
              static_cast<size_t>(parts.codes_offset - parts.scales_bytes));
  std::memset(section + parts.codes_end, 0,
              static_cast<size_t>(parts.section_bytes - parts.codes_end));
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
