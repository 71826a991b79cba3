#pragma once
// A copy past the cache: what benchmarks compare the codecs with.

#include <cstdint>

namespace fastcomm {

// Copies `num_elements` elements with non-temporal stores, which memcpy uses only for sizes that
// depend on the machine.
void stream_copy(const float* from, float* to, int64_t num_elements);

}  // namespace fastcomm
