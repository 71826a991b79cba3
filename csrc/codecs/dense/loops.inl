// The loops of all dense codecs for one instruction set. kernels_<isa>.cpp includes this file after
// core/loops_<isa>.h.

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "codecs/dense/codecs.h"
#include "codecs/dense/kernels.h"
#include "codecs/dense/section.h"
#include "core/loops.inl"
// After core/loops.inl; each builds on those before it.
#include "codecs/dense/sections.inl"
//
#include "codecs/dense/rotation.inl"
//
#include "codecs/dense/block_loops.inl"
//
#include "codecs/dense/encode_loops.inl"
//
#include "codecs/dense/decode_loops.inl"

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

template <int kWireId>
DenseKernels kernels_of_wire_id() {
  if constexpr (requires { typename DenseCodecOfWireId<kWireId>::type; }) {
    using C = typename DenseCodecOfWireId<kWireId>::type;
    return {encode<C>, decode<C>};
  } else {
    return {};
  }
}

template <int... kWireIds>
DenseKernelTable make_kernel_table(std::integer_sequence<int, kWireIds...>) {
  return {kernels_of_wire_id<kWireIds>()...};
}

inline DenseKernelTable kernel_table() {
  return make_kernel_table(std::make_integer_sequence<int, kNumWireIds>{});
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
