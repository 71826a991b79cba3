#pragma once
// int8: 8 bits per element, one bf16 scale per 512 elements (1.004 bytes per element).

#include "codecs/dense/symmetric.h"

namespace fastcomm {

struct Int8 : SymmetricMath<8> {
  static constexpr std::string_view kName = "int8";
  static constexpr uint8_t kWireId = 8;
  static constexpr int kBlockElements = 512;
  static constexpr int kElementsPerUnit = 1;
  using Unit = uint8_t;
};

}  // namespace fastcomm

FASTCOMM_REGISTER_DENSE_CODEC(fastcomm::Int8);
