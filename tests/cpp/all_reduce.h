#pragma once
// A group of in-process ranks that synchronize a bucket, step after step.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "codecs/velocity/velocity.h"
#include "collectives/in_process_ranks.h"
#include "collectives/schedules.h"
#include "doctest.h"
#include "tested_codecs.h"
#include "values.h"

namespace fastcomm::testing {

struct GroupOptions {
  CodecSpec codec{"int8"};
  std::string_view schedule = "ring";
  int world_size = 2;
  int64_t num_elements = 0;
  DType dtype = DType::kFloat32;
  std::vector<Run> runs = {};                // of `codec`, 0, or another, from 1 on
  std::vector<CodecSpec> other_codecs = {};  // of the runs; none: fp32
  float factor = 1;
  int64_t slice_elements = 0;  // 0: as the codec says
  int num_threads = 1;         // of a pool that the ranks share
  bool has_velocity = false;
  Momentum momentum = {};

  std::vector<CodecSpec> codecs() const { return codec_list(codec, runs, other_codecs); }
};

// The codec of a bucket with slices of another size, so that small buckets have several, and with
// a look at each call.
class SlicedCodec final : public Codec {
 public:
  // "encode" or "decode", of which elements; what was encoded.
  using Observe = std::function<void(std::string_view event, ElementRange range,
                                     std::span<const std::byte> payload)>;
  SlicedCodec(Codec& codec, int64_t slice_elements, Observe observe = nullptr)
      : codec_(codec), slice_elements_(slice_elements), observe_(std::move(observe)) {}

  BucketShape shape() const override {
    BucketShape shape = codec_.shape();
    if (slice_elements_ > 0) shape.smallest_slice = shape.largest_slice = slice_elements_;
    return shape;
  }
  std::string describe() const override { return codec_.describe(); }
  int64_t payload_bytes(ElementRange range) const override { return codec_.payload_bytes(range); }
  void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
              std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
              const MessageLabel& label) override {
    codec_.encode(range, received, received_labels, payload, label);
    if (observe_) observe_("encode", range, payload);
  }
  void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
              std::span<const MessageLabel> labels) override {
    if (observe_) observe_("decode", range, {});
    codec_.decode(range, payloads, labels);
  }

 private:
  Codec& codec_;
  int64_t slice_elements_;
  Observe observe_;
};

struct Rank {
  std::vector<float> result;    // of the last step
  std::vector<float> residual;  // one per element; cleared: no error feedback
  std::vector<float> velocity;  // one per element, if there is one
  Measurements measurements;
  CodecWorkspace workspace;
  PayloadBuffers buffers;
};

class Group {
 public:
  explicit Group(GroupOptions options) : options_(std::move(options)) {
    ranks_.resize(static_cast<size_t>(options_.world_size));
    const auto threads = std::make_shared<ThreadPool>(options_.num_threads);
    for (Rank& rank : ranks_) {
      rank.workspace.threads = threads;
      if (options_.has_velocity) rank.velocity.resize(static_cast<size_t>(options_.num_elements));
      if (options_.codec.is_stochastic) continue;
      rank.residual.resize(static_cast<size_t>(options_.num_elements));
    }
  }

  // One synchronization of gradients[rank], which are representable in the group's dtype.
  void all_reduce(const std::vector<std::vector<float>>& gradients) {
    InProcessNetwork network(options_.world_size);
    run_ranks(network, [&](int rank) {
      const auto transport = network.transport(rank);
      run_rank(rank, gradients[static_cast<size_t>(rank)], *transport, {step_, 5});
    });
    ++step_;
  }

  // `observe`: SlicedCodec's.
  void run_rank(int index, const std::vector<float>& gradient, Transport& transport, ExchangeId id,
                const SlicedCodec::Observe& observe = nullptr) {
    Rank& rank = ranks_[static_cast<size_t>(index)];
    auto memory = to_dtype(options_.dtype, gradient);
    const BucketMemory bucket_memory{
        memory.data(), options_.dtype, rank.residual.empty() ? nullptr : rank.residual.data(),
        options_.num_elements, options_.has_velocity ? rank.velocity.data() : nullptr};
    if (options_.has_velocity) {
      accumulate_velocity(bucket_memory, options_.momentum, rank.workspace.threads.get());
    }
    BucketCodec bucket(options_.codecs(), bucket_memory, options_.runs, options_.factor, index,
                       rank.workspace);
    SlicedCodec codec(bucket, options_.slice_elements, observe);
    Exchange exchange(codec, transport, rank.buffers, rank.measurements, id);
    schedule(options_.schedule).run(exchange);
    rank.result = to_floats(options_.dtype, memory);
  }

  const GroupOptions& options() const { return options_; }
  std::vector<Rank>& ranks() { return ranks_; }
  Rank& rank(int index) { return ranks_[static_cast<size_t>(index)]; }

 private:
  GroupOptions options_;
  std::vector<Rank> ranks_;
  uint32_t step_ = 0;
};

inline std::vector<std::vector<float>> random_gradients(const GroupOptions& options, Values kind,
                                                        uint64_t seed) {
  std::vector<std::vector<float>> gradients;
  for (int rank = 0; rank < options.world_size; ++rank) {
    gradients.push_back(rounded_to(
        options.dtype,
        random_values(kind, options.num_elements, seed * 1000 + static_cast<uint64_t>(rank))));
  }
  return gradients;
}

inline constexpr int kWorldSizes[] = {1, 2, 3, 5, 8};

// Calls visit(options) for all schedules, codecs and world sizes.
template <class Visit>
void for_each_group(GroupOptions options, const std::vector<CodecSpec>& codecs, Visit&& visit) {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : codecs) {
      for (const int world_size : kWorldSizes) {
        options.schedule = schedule.name;
        options.codec = codec;
        options.world_size = world_size;
        CAPTURE(options.schedule);
        CAPTURE(options.codec.name);
        CAPTURE(options.world_size);
        CAPTURE(options.num_elements);
        CAPTURE(static_cast<int>(options.dtype));
        CAPTURE(options.runs.size());
        CAPTURE(options.slice_elements);
        visit(options);
      }
    }
  }
}

template <class Visit>
void for_each_group(const GroupOptions& options, Visit&& visit) {
  for_each_group(options, tested_codecs(), visit);
}

inline void check_ranks_identical(Group& group) {
  for (const Rank& rank : group.ranks()) REQUIRE(same_bits(rank.result, group.rank(0).result));
}

inline void check_groups_identical(Group& group, Group& other) {
  for (int rank = 0; rank < group.options().world_size; ++rank) {
    REQUIRE(same_bits(group.rank(rank).result, other.rank(rank).result));
    REQUIRE(same_bits(group.rank(rank).residual, other.rank(rank).residual));
  }
}

}  // namespace fastcomm::testing
