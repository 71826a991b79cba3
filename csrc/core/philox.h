#pragma once
// Philox4x32-10: random numbers as a pure function of a counter and a key, so that any element's
// can be computed anywhere, in any order. Salmon et al., "Parallel random numbers: as easy as 1, 2,
// 3", SC 2011, section 3.3.

#include <cstdint>

#include "core/host_device.h"

namespace fastcomm {

struct PhiloxWords {
  uint32_t word[4];
};

struct PhiloxKey {
  uint32_t word[2];
};

FASTCOMM_HOST_DEVICE PhiloxWords philox(PhiloxWords counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xd2511f53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xcd9e8d57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.word[0],
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.word[1],
                static_cast<uint32_t>(product0)}};
    key.word[0] += 0x9e3779b9u;
    key.word[1] += 0xbb67ae85u;
  }
  return counter;
}

}  // namespace fastcomm
