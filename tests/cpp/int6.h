#pragma once
// int6: 6 bits per element, one bf16 scale per 320 elements (0.806 bytes per element). Five codes
// share a word of 32 bits, of which two stay zero.

#include "codecs/dense/symmetric.h"

namespace fastcomm {

struct Int6 : SymmetricMath<6> {
  static constexpr std::string_view kName = "int6";
  static constexpr uint8_t kWireId = 6;
  static constexpr int kBlockElements = 320;
  static constexpr int kElementsPerUnit = 5;
  using Unit = uint32_t;
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Int6);
