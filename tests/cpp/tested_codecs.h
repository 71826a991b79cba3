#pragma once
// The codecs that the tests of buckets and schedules go through.

#include <vector>

#include "codecs/bucket_codec.h"

namespace fastcomm::testing {

// Those that lose nothing: what they leave out goes to the residual.
inline const std::vector<CodecSpec>& tested_codecs() {
  static const std::vector<CodecSpec> specs = [] {
    std::vector<CodecSpec> all;
    for (const DenseFormat& format : dense_formats()) {
      all.push_back({.name = std::string(format.name), .seed = format.is_rotated ? 99u : 0u});
    }
    all.push_back({.name = "topk", .density = 0.02});
    return all;
  }();
  return specs;
}

// Those that round at random, without a residual.
inline const std::vector<CodecSpec>& stochastic_codecs() {
  static const std::vector<CodecSpec> specs = [] {
    std::vector<CodecSpec> all;
    for (const DenseFormat& format : dense_formats()) {
      if (!format.has_stochastic_rounding) continue;
      all.push_back({.name = std::string(format.name), .is_stochastic = true, .seed = 99});
    }
    return all;
  }();
  return specs;
}

// The list of a bucket: its runs have `codec`, 0, or one of `others`, from 1 on; where there are
// none, 1 is fp32.
inline std::vector<CodecSpec> codec_list(const CodecSpec& codec, const std::vector<Run>& runs,
                                         const std::vector<CodecSpec>& others) {
  std::vector<CodecSpec> codecs{codec};
  if (runs.empty()) return codecs;
  codecs.insert(codecs.end(), others.begin(), others.end());
  if (others.empty()) codecs.push_back({"fp32"});
  return codecs;
}

inline bool is_rotated(const CodecSpec& spec) {
  return spec.name != "topk" && dense_format(spec.name).is_rotated;
}

}  // namespace fastcomm::testing
