#pragma once
// Where the parts of a top-k section are; topk.h says what they hold.

#include <cstdint>

#include "codecs/payload.h"

namespace fastcomm {

inline constexpr int64_t kSubBlockElements = 65536;

// Of a section for k entries of num_elements elements; in bytes from its begin.
struct TopKSectionLayout {
  TopKSectionLayout() = default;
  TopKSectionLayout(int64_t k, int64_t num_elements)
      : num_sub_blocks((num_elements + kSubBlockElements - 1) / kSubBlockElements),
        offsets(align_up(num_sub_blocks * 4, kSectionAlignment)),
        values(offsets + align_up(k * 2, kSectionAlignment)),
        end(values + align_up(k * 2, kSectionAlignment)) {}
  int64_t num_sub_blocks = 0;
  int64_t offsets = 0;
  int64_t values = 0;
  int64_t end = 0;
};

}  // namespace fastcomm
