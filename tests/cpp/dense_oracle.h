#pragma once
// The dense codecs a second time, element by element: docs/wire_format.md as a program. Of the
// codec only its element math is used.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "dense_sections.h"

namespace fastcomm::testing {

inline constexpr int kRotated = kRotationElements;

// The normalized Hadamard transform of a block, or of the pieces of a tail.
inline void hadamard(std::vector<float>& values) {
  size_t first = 0;
  for (size_t size = kRotated; size > 0; size /= 2) {
    if ((values.size() & size) == 0) continue;
    for (size_t distance = 1; distance < size; distance *= 2) {
      const std::vector<float> before = values;
      for (size_t i = first; i < first + size; ++i) {
        const bool is_upper = ((i - first) & distance) != 0;
        values[i] = is_upper ? before[i - distance] - before[i] : before[i] + before[i + distance];
      }
    }
    const float norm = 1.0f / std::sqrt(static_cast<float>(size));
    for (size_t i = first; i < first + size; ++i) values[i] *= norm;
    first += size;
  }
}

inline void flip_signs(std::vector<float>& values, const RotationSigns& signs) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (signs.flips[i] != 0) values[i] = -values[i];
  }
}

template <class C>
struct DenseOracle {
  static constexpr int64_t kBlock = C::kBlockElements;

  // Where a block's scale and codes are in a section of n elements.
  struct Block {
    Block(int64_t n, int64_t block)
        : size(std::min(kBlock, n - block * kBlock)),
          units((size + C::kElementsPerUnit - 1) / C::kElementsPerUnit),
          scale_offset(static_cast<size_t>(2 * block)),
          codes_offset(codes_offset_of_section(n) +
                       static_cast<size_t>(block * kBlock / C::kElementsPerUnit) *
                           sizeof(typename C::Unit)) {}

    int64_t size, units;
    size_t scale_offset, codes_offset;
  };

  static size_t codes_offset_of_section(int64_t n) {
    const int64_t num_blocks = (n + kBlock - 1) / kBlock;
    return kHasScale<C> ? static_cast<size_t>((2 * num_blocks + 15) / 16 * 16) : 0;
  }
  static size_t section_bytes(int64_t n) {
    const auto units = static_cast<size_t>((n + C::kElementsPerUnit - 1) / C::kElementsPerUnit);
    return (codes_offset_of_section(n) + units * sizeof(typename C::Unit) + 15) / 16 * 16;
  }

  static BlockScale scale_of(uint16_t wire_scale) {
    const float scale = bf16_to_float(wire_scale);
    return {scale, scale > 0 ? 1 / scale : 0.0f};
  }

  // Element i of a block: its code is in unit i % units, in the bits of plane i / units.
  static uint32_t load_code(const Bytes& section, const Block& block, int64_t i) {
    typename C::Unit unit;
    const auto index = static_cast<size_t>(i % block.units);
    std::memcpy(&unit, &section[block.codes_offset + index * sizeof unit], sizeof unit);
    const uint64_t mask = (uint64_t{1} << kCodeBits<C>)-1;
    return static_cast<uint32_t>((unit >> (i / block.units * kCodeBits<C>)) & mask);
  }
  static void store_code(Bytes& section, const Block& block, int64_t i, uint32_t code) {
    typename C::Unit unit;
    const auto index = static_cast<size_t>(i % block.units);
    std::byte* const at = &section[block.codes_offset + index * sizeof unit];
    std::memcpy(&unit, at, sizeof unit);
    unit = static_cast<typename C::Unit>(unit | code << (i / block.units * kCodeBits<C>));
    std::memcpy(at, &unit, sizeof unit);
  }

  // One block, in the basis in which it is sent.
  static std::vector<float> dequantized(const Bytes& section, int64_t n, int64_t index) {
    const Block block(n, index);
    uint16_t wire_scale = 0;
    if (kHasScale<C>) std::memcpy(&wire_scale, &section[block.scale_offset], 2);
    std::vector<float> values;
    for (int64_t i = 0; i < block.size; ++i) {
      values.push_back(C::dequantize(load_code(section, block, i), scale_of(wire_scale)));
    }
    return values;
  }

  static void add_to(std::vector<float>& sum, const std::vector<float>& values) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
  }

  static void rotate(std::vector<float>& values, const RotationSigns* signs) {
    if (!C::kIsRotated || signs == nullptr) return;
    flip_signs(values, *signs);
    hadamard(values);
  }
  static void rotate_back(std::vector<float>& values, const RotationSigns* signs) {
    if (!C::kIsRotated || signs == nullptr) return;
    hadamard(values);
    flip_signs(values, *signs);
  }

  // What the scale is made of; larger than any finite one if a value is not finite.
  static float statistic_of(const std::vector<float>& values) {
    if (!all_finite(values)) return kInfinity;
    float largest = 0;
    float sums[64] = {};
    for (size_t i = 0; i < values.size(); ++i) {
      largest = std::max(largest, std::fabs(values[i]));
      sums[i % 64] += std::fabs(values[i]);
    }
    for (int distance = 32; distance > 0; distance /= 2) {
      for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
    }
    if (C::kScaledBy == ScaledBy::kLargestMagnitude) return largest;
    return sums[0] / static_cast<float>(values.size());
  }

  static uint32_t random_word(const RoundingNoise& noise, int64_t first, int64_t i) {
    const auto counter = static_cast<uint64_t>(noise.first_element + first + i % (kBlock / 4));
    const PhiloxWords words =
        philox({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), noise.step,
                 noise.bucket}},
               {{noise.seed, noise.rank}});
    return words.word[i / (kBlock / 4)];
  }

  static Quantized quantize(float value, BlockScale scale, const RoundingNoise* noise,
                            int64_t first, int64_t i) {
    if constexpr (StochasticCodec<C>) {
      if (noise != nullptr) {
        return C::quantize_stochastic(value, scale, random_word(*noise, first, i));
      }
    }
    return C::quantize(value, scale);
  }

  static Encoded encode(const EncodeInputs& inputs) {
    const int64_t n = inputs.num_elements;
    Encoded out{Bytes(section_bytes(n)), inputs.residual};
    const std::vector<float> gradient = to_floats(inputs.dtype, inputs.gradient);
    for (int64_t index = 0; index * kBlock < n; ++index) encode_block(inputs, gradient, index, out);
    return out;
  }

  static void encode_block(const EncodeInputs& inputs, const std::vector<float>& gradient,
                           int64_t index, Encoded& out) {
    const Block block(inputs.num_elements, index);
    const int64_t first = index * kBlock;
    const bool has_residual = !inputs.residual.empty();
    std::vector<float> values(gradient.begin() + first, gradient.begin() + first + block.size);
    for (size_t i = 0; has_residual && i < values.size(); ++i) {
      values[i] += inputs.residual[static_cast<size_t>(first) + i];
    }
    rotate(values, inputs.signs);
    for (const Bytes& section : inputs.received) {
      add_to(values, dequantized(section, inputs.num_elements, index));
    }

    uint16_t wire_scale = 0;
    std::vector<float> left_out = values;
    if (kHasScale<C>) {
      const float statistic = statistic_of(values);
      if (!(statistic < bits_float(C::kIsRotated ? kLargestRotatableBits : kLargestScalableBits))) {
        wire_scale = kNonFiniteScale;
        left_out.assign(values.size(), kNaN);
      } else if (statistic >= bits_float(kSmallestScalableBits)) {
        if constexpr (kHasScale<C>) wire_scale = C::wire_scale(statistic);
      }
      std::memcpy(&out.section[block.scale_offset], &wire_scale, 2);
    }
    for (int64_t i = 0; i < block.size; ++i) {
      if (kHasScale<C> && (wire_scale == 0 || wire_scale == kNonFiniteScale)) break;
      const float value = values[static_cast<size_t>(i)];
      const Quantized quantized = quantize(value, scale_of(wire_scale), inputs.noise, first, i);
      store_code(out.section, block, i, quantized.code);
      left_out[static_cast<size_t>(i)] = value - quantized.value;
    }
    if (all_finite(left_out)) rotate_back(left_out, inputs.signs);
    for (size_t i = 0; has_residual && i < values.size(); ++i) {
      // What is not finite is sent as it is, and the residual stays.
      if (std::isfinite(left_out[i])) out.residual[static_cast<size_t>(first) + i] = left_out[i];
    }
  }

  static std::vector<float> decode(const DecodeInputs& inputs) {
    std::vector<float> out;
    for (int64_t index = 0; index * kBlock < inputs.num_elements; ++index) {
      std::vector<float> sum = dequantized(inputs.sections[0], inputs.num_elements, index);
      for (size_t i = 1; i < inputs.sections.size(); ++i) {
        add_to(sum, dequantized(inputs.sections[i], inputs.num_elements, index));
      }
      if (C::kIsRotated && !all_finite(sum)) sum.assign(sum.size(), kNaN);
      rotate_back(sum, inputs.signs);
      for (const float value : sum) out.push_back(value * inputs.factor);
    }
    return rounded_to(inputs.dtype, out);
  }
};

}  // namespace fastcomm::testing
