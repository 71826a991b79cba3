#pragma once
// One bucket on one rank, encoded and decoded without a schedule.

#include <memory>
#include <vector>

#include "tested_codecs.h"
#include "values.h"

namespace fastcomm::testing {

struct BucketOptions {
  CodecSpec codec{"int8"};
  DType dtype = DType::kFloat32;
  std::vector<Run> runs = {};                // of `codec`, 0, or another, from 1 on
  std::vector<CodecSpec> other_codecs = {};  // of the runs; none: fp32
  int rank = 0;
  int num_threads = 0;  // 0: no pool

  std::vector<CodecSpec> codecs() const { return codec_list(codec, runs, other_codecs); }
};

class Bucket {
 public:
  // An empty residual: no error feedback. An empty velocity: none.
  Bucket(const BucketOptions& options, const std::vector<float>& gradient,
         std::vector<float> residual, std::vector<float> velocity = {})
      : dtype_(options.dtype),
        memory_(to_dtype(options.dtype, gradient)),
        residual_(std::move(residual)),
        velocity_(std::move(velocity)),
        workspace_(make_workspace(options.num_threads)),
        codec_(
            options.codecs(),
            {memory_.data(), dtype_, residual_.empty() ? nullptr : residual_.data(),
             static_cast<int64_t>(gradient.size()), velocity_.empty() ? nullptr : velocity_.data()},
            options.runs, 1, options.rank, workspace_) {}
  Bucket(const Bucket&) = delete;

  Bytes encode(ElementRange range, const std::vector<Bytes>& received, const MessageLabel& label) {
    Bytes payload(static_cast<size_t>(codec_.payload_bytes(range)), std::byte{0xa5});
    const std::vector<MessageLabel> labels(received.size(), label);
    codec_.encode(range, spans_of(received), labels, payload, label);
    return payload;
  }
  Bytes encode(const std::vector<Bytes>& received = {}) { return encode(whole(), received, {}); }

  // Returns the bucket.
  std::vector<float> decode(ElementRange range, const std::vector<Bytes>& payloads,
                            const MessageLabel& label) {
    const std::vector<MessageLabel> labels(payloads.size(), label);
    codec_.decode(range, spans_of(payloads), labels);
    return to_floats(dtype_, memory_);
  }
  std::vector<float> decode(const std::vector<Bytes>& payloads) {
    return decode(whole(), payloads, {});
  }

  ElementRange whole() const { return {0, codec_.shape().num_elements}; }
  BucketCodec& codec() { return codec_; }
  const std::vector<float>& residual() const { return residual_; }
  const std::vector<float>& velocity() const { return velocity_; }
  const Bytes& memory() const { return memory_; }

 private:
  static CodecWorkspace make_workspace(int num_threads) {
    CodecWorkspace workspace;
    if (num_threads > 0) workspace.threads = std::make_shared<ThreadPool>(num_threads);
    return workspace;
  }
  static std::vector<std::span<const std::byte>> spans_of(const std::vector<Bytes>& payloads) {
    return {payloads.begin(), payloads.end()};
  }

  DType dtype_;
  Bytes memory_;
  std::vector<float> residual_;
  std::vector<float> velocity_;
  CodecWorkspace workspace_;
  BucketCodec codec_;
};

}  // namespace fastcomm::testing
