#pragma once
// int4: 4 bits per element, one bf16 scale per 256 elements (0.508 bytes per element).

#include "codecs/dense/symmetric.h"

namespace fastcomm {

struct Int4 : SymmetricMath<4> {
  static constexpr std::string_view kName = "int4";
  static constexpr uint8_t kWireId = 4;
  static constexpr int kBlockElements = 256;
  static constexpr int kElementsPerUnit = 2;
  using Unit = uint8_t;
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Int4);
