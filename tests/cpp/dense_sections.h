#pragma once
// Encoding and decoding of one dense section, on any instruction set and in parts; and the inputs
// that the tests of the dense codecs go through.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "codecs/dense/codecs.h"
#include "codecs/dense/kernels.h"
#include "doctest.h"
#include "values.h"

namespace fastcomm::testing {

inline constexpr int64_t kWholeSection = std::numeric_limits<int64_t>::max();
inline constexpr std::byte kGuard{0xa5};
inline constexpr size_t kGuardBytes = 64;

inline const RotationSigns& signs_of_tests() {
  static const RotationSigns signs = make_rotation_signs(20'240'601);
  return signs;
}

struct EncodeInputs {
  DType dtype = DType::kFloat32;
  Bytes gradient;
  std::vector<float> residual = {};  // empty: no error feedback
  std::vector<Bytes> received = {};
  int64_t num_elements = 0;
  const RotationSigns* signs = &signs_of_tests();
  const RoundingNoise* noise = nullptr;
};

inline EncodeInputs inputs_of(const std::vector<float>& values, bool has_residual = false) {
  const std::vector<float> zeros(has_residual ? values.size() : 0);
  return {.gradient = to_dtype(DType::kFloat32, values),
          .residual = zeros,
          .num_elements = static_cast<int64_t>(values.size())};
}

struct Encoded {
  Bytes section;
  std::vector<float> residual;
};

// In parts of `blocks_per_part` blocks, the last part first.
template <class Visit>
void for_each_part(int64_t num_blocks, int64_t blocks_per_part, Visit&& visit) {
  const int64_t size = std::min(blocks_per_part, std::max<int64_t>(1, num_blocks));
  for (int64_t part = (num_blocks + size - 1) / size - 1; part >= 0; --part) {
    visit(part * size, std::min(num_blocks, (part + 1) * size));
  }
}

inline Encoded encode(const DenseFormat& format, Isa isa, const EncodeInputs& inputs,
                      int64_t blocks_per_part = kWholeSection) {
  const auto section_bytes = static_cast<size_t>(format.section_bytes(inputs.num_elements));
  Encoded out{Bytes(section_bytes + kGuardBytes, kGuard), inputs.residual};
  const auto received = pointers_to(inputs.received);
  EncodeArguments arguments{inputs.gradient.data(),
                            out.residual.empty() ? nullptr : out.residual.data(),
                            received.data(),
                            static_cast<int>(received.size()),
                            out.section.data(),
                            inputs.num_elements,
                            0,
                            0,
                            inputs.signs,
                            inputs.noise};
  format.clear_padding(out.section.data(), inputs.num_elements);
  for_each_part(format.num_blocks(inputs.num_elements), blocks_per_part,
                [&](int64_t first_block, int64_t end_block) {
                  arguments.first_block = first_block;
                  arguments.end_block = end_block;
                  format.kernels_of(isa).encode(inputs.dtype, arguments);
                });
  const auto is_guard = [](std::byte byte) { return byte == kGuard; };
  REQUIRE(std::all_of(out.section.end() - kGuardBytes, out.section.end(), is_guard));
  out.section.resize(section_bytes);
  return out;
}

struct DecodeInputs {
  std::vector<Bytes> sections;
  int64_t num_elements;
  DType dtype = DType::kFloat32;
  float factor = 1;
  const RotationSigns* signs = &signs_of_tests();
  size_t misalignment = 0;  // in elements, from the start of a cache line
};

// The result, as elements of the dtype.
inline Bytes decode_bytes(const DenseFormat& format, Isa isa, const DecodeInputs& inputs,
                          int64_t blocks_per_part = kWholeSection) {
  constexpr size_t kLine = 64;
  const size_t bytes = static_cast<size_t>(inputs.num_elements) * dtype_bytes(inputs.dtype);
  Bytes memory(bytes + 2 * kLine + kGuardBytes + inputs.misalignment * 4, kGuard);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  const size_t begin =
      kLine + (kLine - address % kLine) % kLine + inputs.misalignment * dtype_bytes(inputs.dtype);
  const auto sections = pointers_to(inputs.sections);
  for_each_part(format.num_blocks(inputs.num_elements), blocks_per_part,
                [&](int64_t first_block, int64_t end_block) {
                  format.kernels_of(isa).decode(
                      inputs.dtype,
                      {sections.data(), static_cast<int>(sections.size()), memory.data() + begin,
                       inputs.factor, inputs.num_elements, first_block, end_block, inputs.signs});
                });
  const auto first = memory.begin() + static_cast<std::ptrdiff_t>(begin);
  const auto last = first + static_cast<std::ptrdiff_t>(bytes);
  const auto is_guard = [](std::byte byte) { return byte == kGuard; };
  REQUIRE(std::all_of(memory.begin(), first, is_guard));
  REQUIRE(std::all_of(last, memory.end(), is_guard));
  return {first, last};
}

inline std::vector<float> decode(const DenseFormat& format, Isa isa, const DecodeInputs& inputs,
                                 int64_t blocks_per_part = kWholeSection) {
  return to_floats(inputs.dtype, decode_bytes(format, isa, inputs, blocks_per_part));
}

inline std::vector<float> decode_one(const DenseFormat& format, const Bytes& section,
                                     int64_t num_elements) {
  return decode(format, Isa::kBaseline, {.sections = {section}, .num_elements = num_elements});
}

inline constexpr int64_t kSectionSizes[] = {
    0, 1, 2, 3, 5, 15, 16, 17, 63, 64, 255, 256, 257, 511, 512, 513, 767, 1000, 1023, 1025, 4103};

// Calls visit(inputs) with all dtypes, kinds of values and sizes, with and without a residual, and
// with up to three received sections.
template <class Visit>
void for_each_inputs(const DenseFormat& format, Visit&& visit) {
  uint64_t seed = 0;
  for (const DType dtype : kAllDTypes) {
    for (const Values kind : kAllValues) {
      for (const int64_t n : kSectionSizes) {
        CAPTURE(format.name);
        CAPTURE(static_cast<int>(dtype));
        CAPTURE(static_cast<int>(kind));
        CAPTURE(n);
        seed += 10;
        std::vector<Bytes> received;
        for (uint64_t i = 0; i < 3; ++i) {
          const auto other = inputs_of(random_values(kind, n, seed + i));
          received.push_back(encode(format, Isa::kBaseline, other).section);
        }
        const auto gradient = to_dtype(dtype, random_values(kind, n, seed + 3));
        const Values residual_kind = seed % 3 == 0 ? Values::kTiny : Values::kNormal;
        const auto residual = random_values(residual_kind, n, seed + 4);
        for (const bool has_residual : {false, true}) {
          for (int num_received = 0; num_received <= 3; ++num_received) {
            CAPTURE(has_residual);
            CAPTURE(num_received);
            visit(EncodeInputs{.dtype = dtype,
                               .gradient = gradient,
                               .residual = has_residual ? residual : std::vector<float>{},
                               .received = {received.begin(), received.begin() + num_received},
                               .num_elements = n});
          }
        }
      }
    }
  }
}

// Calls visit(codec) with a value of each registered codec's type.
template <class Visit>
void for_each_dense_codec(Visit&& visit) {
  auto visit_id = [&]<int kWireId>(std::integral_constant<int, kWireId>) {
    if constexpr (requires { typename DenseCodecOfWireId<kWireId>::type; }) {
      visit(typename DenseCodecOfWireId<kWireId>::type{});
    }
  };
  [&]<int... kWireIds>(std::integer_sequence<int, kWireIds...>) {
    (visit_id(std::integral_constant<int, kWireIds>{}), ...);
  }(std::make_integer_sequence<int, kNumWireIds>{});
}

}  // namespace fastcomm::testing
