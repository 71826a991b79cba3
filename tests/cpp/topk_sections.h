#pragma once
// Encoding and decoding of a top-k section over two pieces.

#include <vector>

#include "codecs/sparse/topk.h"
#include "values.h"

namespace fastcomm::testing {

inline constexpr int64_t kTopKElements = 2 * 65536 + 1003;
inline constexpr int64_t kTopKCount = 1321;

using Sections = std::vector<Bytes>;

struct TopKCall {
  Sections received = {};
  TopKExecution execution = {active_isa(), nullptr};
  int64_t k = kTopKCount;
};

// `residual`: updated; empty: no error feedback.
inline Bytes encode_topk(TopKEncoder& encoder, std::vector<float> gradient,
                         std::vector<float>& residual, const TopKCall& call = {}) {
  const auto n = static_cast<int64_t>(gradient.size());
  // Two pieces: the index space runs on from one to the next.
  const int64_t cut = n / 3;
  float* const second = residual.empty() ? nullptr : residual.data() + cut;
  const TopKPiece pieces[] = {{gradient.data(), residual.empty() ? nullptr : residual.data(), cut},
                              {gradient.data() + cut, second, n - cut}};
  Bytes section(static_cast<size_t>(topk_section_bytes(call.k, n)), std::byte{0xa5});
  encoder.encode(call.execution, DType::kFloat32, pieces, call.k, pointers_to(call.received),
                 section);
  return section;
}

inline Bytes encode_topk(const std::vector<float>& gradient, std::vector<float>& residual,
                         const TopKCall& call = {}) {
  TopKEncoder encoder;
  return encode_topk(encoder, gradient, residual, call);
}

inline Bytes encode_topk(const std::vector<float>& gradient) {
  std::vector<float> none;
  return encode_topk(gradient, none);
}

inline std::vector<float> decode_topk(const Sections& sections, float factor = 1,
                                      TopKExecution execution = {active_isa(), nullptr},
                                      int64_t n = kTopKElements, int64_t k = kTopKCount) {
  std::vector<float> out(static_cast<size_t>(n), kNaN);
  const int64_t cut = n / 4;
  const TopKDecoder::OutPiece pieces[] = {{out.data(), cut}, {out.data() + cut, n - cut}};
  TopKDecoder().decode(execution, DType::kFloat32, pieces, k, factor, pointers_to(sections));
  return out;
}

}  // namespace fastcomm::testing
