#pragma once
// What the first bytes of a fuzzing input mean. Every value of every byte means something, so that
// no mutation is wasted; what comes after them are the bytes of the payloads.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "codecs/bucket_codec.h"

namespace fastcomm::fuzz {

// How the bytes become payloads. Random bytes never have the right checksum, and few would get
// further than it.
enum class Forgery : uint8_t {
  kNone,      // the bytes as they are, in payloads of any size
  kChecksum,  // the same, with the right checksum
  kHeader,    // bodies of the right size, under a header that is right in all fields
};
inline constexpr int kNumForgeries = 3;

// Bits of FuzzInput::options.
inline constexpr uint8_t kHop = 1;  // encode with received payloads, rather than decode them
inline constexpr uint8_t kResidual = 2;
inline constexpr uint8_t kStochastic = 4;  // if the codec can, and there is no residual
inline constexpr uint8_t kThreads = 8;
inline constexpr uint8_t kRuns = 16;  // some of the bucket is not compressed

struct FuzzInput {
  uint8_t codec_id;      // a wire id; else an index into fuzzed_codecs()
  uint8_t dtype;         // index, as are the others
  uint8_t isa;           // of supported_isas()
  uint8_t forgery;       // Forgery
  uint8_t options;       // bits
  uint8_t num_payloads;  // minus one
  uint8_t misalignment;  // of gradient and residual, in elements
  uint8_t gradients;     // testing::Values of a hop
  uint16_t num_elements;
  uint8_t num_sub_blocks;  // top-k only: so many times 65536 elements more
  uint8_t density;         // top-k only: index
  uint32_t seed;           // of the gradients, the rotation and stochastic rounding
};
static_assert(sizeof(FuzzInput) == 16);

inline constexpr uint16_t kMostElements = 5000;
inline constexpr double kDensities[] = {0.01, 0.05, 0.12};

inline const MessageLabel kLabel{.step = 7, .bucket = 1, .segment = 2, .slice = 3};

struct FuzzedCodec {
  uint8_t wire_id;
  std::string name;
};

inline const std::vector<FuzzedCodec>& fuzzed_codecs() {
  static const std::vector<FuzzedCodec> codecs = [] {
    std::vector<FuzzedCodec> all{{kTopKWireId, "topk"}};
    for (const DenseFormat& format : dense_formats()) {
      all.push_back({format.wire_id, std::string(format.name)});
    }
    return all;
  }();
  return codecs;
}

// The bucket that an input names.
struct FuzzBucket {
  explicit FuzzBucket(const FuzzInput& input)
      : dtype(static_cast<DType>(input.dtype % 3)),
        num_elements(input.num_elements % (kMostElements + 1)) {
    const auto& codecs = fuzzed_codecs();
    spec.name = codecs[input.codec_id % codecs.size()].name;
    for (const FuzzedCodec& codec : codecs) {
      if (codec.wire_id == input.codec_id) spec.name = codec.name;
    }
    const bool is_sparse = spec.name == "topk";
    if (is_sparse) {
      num_elements += int64_t{65536} * (input.num_sub_blocks % 3);
      spec.density = kDensities[input.density % std::size(kDensities)];
    }
    has_residual = (input.options & kResidual) != 0;
    spec.is_stochastic = (input.options & kStochastic) != 0 && !has_residual && !is_sparse &&
                         dense_format(spec.name).has_stochastic_rounding;
    spec.seed = input.seed;
    if ((input.options & kRuns) != 0) {
      const int64_t third = num_elements / 3;
      runs = {{third, 0}, {third / 8, 1}, {0, 0}, {num_elements - third - third / 8, 0}};
    }
  }

  std::vector<CodecSpec> codecs() const {
    if (runs.empty()) return {spec};
    return {spec, {"fp32"}};
  }

  CodecSpec spec;
  DType dtype;
  int64_t num_elements;
  bool has_residual;
  std::vector<Run> runs;
};

}  // namespace fastcomm::fuzz
