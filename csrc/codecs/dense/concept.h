#pragma once
// What a dense block codec is, and how one is registered.
//
// A dense block codec turns every element into a fixed number of bits. It is one struct in one
// header: the element math and nothing else. The loops around it (dense/loops.inl for the CPU)
// fuse it with accumulation and error feedback, and exist once for all codecs.
//
// Words: a *block* is the elements that share one scale; a *unit* is the unsigned integer that
// holds the codes of one or several elements (kElementsPerUnit). Element p * units + j of a block
// of `units` units has its code in unit j at bit p * code bits: the *planes* p are contiguous in
// memory, so that packing needs no shuffle on any instruction set.

#include <concepts>
#include <cstdint>
#include <string_view>

#include "core/host_device.h"

namespace fastcomm {

// The scale of a block, as the element math uses it.
struct BlockScale {
  float scale;    // value of code 1
  float inverse;  // 1 / scale, or 0 where the scale is 0
};

// A code, and the value that it decodes to.
struct Quantized {
  uint32_t code;
  float value;
};

// What the scale of a block is made from; it is sent as one bf16 per block.
enum class ScaledBy { kNothing, kLargestMagnitude, kMeanMagnitude };

// The largest statistic that a scale can be made for. Above it (and for Inf and NaN) the block is
// sent as non-finite: the largest code times a rounded-up scale might overflow.
inline constexpr uint32_t kLargestScalableBits = 0x7f000000u;  // 2^127
// The same of a rotated codec: rotating back sums 256 values before it divides by 16, both of what
// is sent, by a hundred ranks, and of what is left out.
inline constexpr uint32_t kLargestRotatableBits = 0x77800000u;  // 2^112
// Below it 1 / scale may overflow: the block is sent as zero and stays in the residual.
inline constexpr uint32_t kSmallestScalableBits = 0x0d800000u;  // 2^-100
inline constexpr uint16_t kNonFiniteScale = 0x7fc0u;            // bf16 NaN

template <class C>
concept DenseCodec = requires(float value, uint32_t bits, BlockScale scale) {
  { C::kName } -> std::convertible_to<std::string_view>;
  { C::kWireId } -> std::convertible_to<uint8_t>;     // in the header of every payload
  { C::kBlockElements } -> std::convertible_to<int>;  // a multiple of 64, and 32 or more units
  { C::kElementsPerUnit } -> std::convertible_to<int>;
  { C::kScaledBy } -> std::convertible_to<ScaledBy>;
  // The block is encoded in the basis of rotation.h: for few levels, whose error would else
  // depend on how the values are distributed. Blocks of kRotationElements elements.
  { C::kIsRotated } -> std::convertible_to<bool>;
  typename C::Unit;
  { C::quantize(value, scale) } -> std::same_as<Quantized>;
  { C::dequantize(bits, scale) } -> std::same_as<float>;
  // With a scale: the bf16 scale of a block with the statistic `value`, whose bits are in
  // [kSmallestScalableBits, kLargestScalableBits).
  requires C::kScaledBy == ScaledBy::kNothing || requires {
    { C::wire_scale(value) } -> std::same_as<uint16_t>;
  };
};

// Optional: rounding up or down at random, so that the expectation is the value itself.
// `bits` is uniformly distributed.
template <class C>
concept StochasticCodec = requires(float value, uint32_t bits, BlockScale scale) {
  { C::quantize_stochastic(value, scale, bits) } -> std::same_as<Quantized>;
};

template <class C>
inline constexpr bool kHasScale = C::kScaledBy != ScaledBy::kNothing;

template <class C>
inline constexpr int kCodeBits =
    static_cast<int>(8 * sizeof(typename C::Unit)) / C::kElementsPerUnit;

inline constexpr int kNumWireIds = 64;

// Specialized once by each registered codec; two codecs with one id do not compile.
template <int kWireId>
struct DenseCodecOfWireId;

}  // namespace fastcomm

#define FASTCOMM_REGISTER_DENSE_CODEC(Type)                                                        \
  static_assert(::fastcomm::DenseCodec<Type>);                                                     \
  static_assert(Type::kWireId > 1 && Type::kWireId < ::fastcomm::kNumWireIds, "1 is top-k's");     \
  static_assert(Type::kBlockElements % 64 == 0);                                                   \
  static_assert(Type::kBlockElements % Type::kElementsPerUnit == 0);                               \
  static_assert(Type::kBlockElements / Type::kElementsPerUnit % 32 == 0, "a warp takes 32 units"); \
  template <>                                                                                      \
  struct fastcomm::DenseCodecOfWireId<Type::kWireId> {                                             \
    using type = Type;                                                                             \
  }
