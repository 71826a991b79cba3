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

// The largest magnitude that a scale can be made for. Above it (and for Inf and NaN) the block is
// sent as non-finite: the largest code times a rounded-up scale might overflow.
inline constexpr uint32_t kLargestScalableBits = 0x7f000000u;  // 2^127
// Below it 1 / scale may overflow: the block is sent as zero and stays in the residual.
inline constexpr uint32_t kSmallestScalableBits = 0x0d800000u;  // 2^-100
inline constexpr uint16_t kNonFiniteScale = 0x7fc0u;            // bf16 NaN

template <class C>
concept DenseCodec = requires(float value, uint32_t bits, BlockScale scale) {
  { C::kName } -> std::convertible_to<std::string_view>;
  { C::kWireId } -> std::convertible_to<uint8_t>;     // in the header of every payload
  { C::kBlockElements } -> std::convertible_to<int>;  // a multiple of 64 elements
  { C::kElementsPerUnit } -> std::convertible_to<int>;
  { C::kHasScale } -> std::convertible_to<bool>;  // one bf16 per block on the wire
  typename C::Unit;
  { C::quantize(value, scale) } -> std::same_as<uint32_t>;
  { C::dequantize(bits, scale) } -> std::same_as<float>;
  // With kHasScale: the bf16 scale of a block whose largest magnitude is `bits`, a value in
  // [kSmallestScalableBits, kLargestScalableBits).
  requires !C::kHasScale || requires {
    { C::wire_scale(bits) } -> std::same_as<uint16_t>;
  };
};

template <class C>
inline constexpr int kCodeBits =
    static_cast<int>(8 * sizeof(typename C::Unit)) / C::kElementsPerUnit;

inline constexpr int kNumWireIds = 64;

// Specialized once by each registered codec; two codecs with one id do not compile.
template <int kWireId>
struct DenseCodecOfWireId;

}  // namespace fastcomm

#define FASTCOMM_REGISTER_DENSE_CODEC(Type)            \
  static_assert(::fastcomm::DenseCodec<Type>);         \
  template <>                                          \
  struct fastcomm::DenseCodecOfWireId<Type::kWireId> { \
    using type = Type;                                 \
  }
