#pragma once
// Which elements the top-k codec samples on a GPU.
//
// The index space is cut in strides, and one run of consecutive elements, as short as memory serves
// them, is taken at a random place of each: gradients of embeddings are large in a few long rows,
// which many short runs hit more evenly than few long ones.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace fastcomm::cuda_topk {

inline constexpr int kSampleRun = 8;  // elements

struct Sample {
  int64_t stride;
  int64_t num_elements;
  uint32_t num_wanted;  // that reach the threshold
};

inline Sample plan_sample(int64_t k, int64_t num_elements) {
  constexpr double kGoodSample = 3000;  // selected elements that it holds
  const double thinning = std::clamp(static_cast<double>(k) / kGoodSample, 16.0, 64.0);
  Sample sample{};
  sample.stride = static_cast<int64_t>(thinning) * kSampleRun;
  sample.num_elements = num_elements / sample.stride * kSampleRun;
  const double expected = static_cast<double>(k) * static_cast<double>(sample.num_elements) /
                          static_cast<double>(num_elements);
  // Far above the expected count: too many candidates cost little, too few a search among all
  // elements. Neighbours are not independent, so that the count varies more than its square root.
  sample.num_wanted = static_cast<uint32_t>(expected + 8.0 * std::sqrt(expected) + 4.0);
  return sample;
}

// The index of element i of the sample.
FASTCOMM_HOST_DEVICE int64_t sampled_index(int64_t stride, int64_t i) {
  const int64_t run = i / kSampleRun;
  // Any fixed function without a pattern will do: the finalizer of MurmurHash3.
  auto random = static_cast<uint32_t>(run);
  random = (random ^ (random >> 16)) * 0x85ebca6bu;
  random = (random ^ (random >> 13)) * 0xc2b2ae35u;
  random ^= random >> 16;
  const auto num_places = static_cast<uint64_t>(stride / kSampleRun);
  const auto place = static_cast<int64_t>(random * num_places >> 32);
  return run * stride + place * kSampleRun + i % kSampleRun;
}

}  // namespace fastcomm::cuda_topk
