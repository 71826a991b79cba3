#pragma once
// A bucket with a codec for each run: dense and sparse ones of several densities, rotated ones with
// different seeds, and fp32; ragged and empty runs.

#include <vector>

#include "codecs/bucket.h"

namespace fastcomm::testing {

// The codecs from 1 on; tests choose codec 0.
inline const std::vector<CodecSpec>& mixed_codecs() {
  static const std::vector<CodecSpec> codecs{
      {"fp32"},         {.name = "topk", .density = 0.05}, {.name = "int2", .seed = 7},
      {.name = "int4"}, {.name = "topk", .density = 0.1},  {.name = "int2", .seed = 8},
      {"bf16"}};  // the last one has no elements
  return codecs;
}

inline constexpr int64_t kMixedElements = 11'000;

inline const std::vector<Run>& mixed_runs() {
  static const std::vector<Run> runs{{1500, 0}, {10, 1},  {1200, 2}, {0, 4},  {777, 3}, {1, 5},
                                     {1024, 4}, {600, 6}, {900, 5},  {64, 1}, {300, 2}, {2001, 0},
                                     {0, 0},    {513, 3}, {2100, 2}, {10, 5}};
  return runs;
}

}  // namespace fastcomm::testing
