// Momentum correction over ranks: nothing is lost, and a rank's velocity of what it sent stops.

#include <cmath>

#include "all_reduce.h"
#include "doctest.h"
#include "mixed_codecs.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

// Which elements sparse sections of a rank carried.
class Sent {
 public:
  explicit Sent(const GroupOptions& options)
      : options_(options), is_sent_(static_cast<size_t>(options.num_elements)) {}

  void add(ElementRange range, std::span<const std::byte> payload) {
    std::vector<float> decoded(is_sent_.size());
    CodecWorkspace workspace;
    BucketCodec codec(options_.codecs(),
                      {decoded.data(), DType::kFloat32, nullptr, options_.num_elements},
                      options_.runs, 1, 0, workspace);
    codec.decode_sections(range, {&payload, 1});
    const std::vector<CodecSpec> codecs = options_.codecs();
    size_t i = 0;
    for (const Run& run : options_.runs) {
      const bool is_sparse = codecs[static_cast<size_t>(run.codec)].name == "topk";
      for (const size_t end = i + static_cast<size_t>(run.num_elements); i < end; ++i) {
        if (is_sparse && decoded[i] != 0 && std::isfinite(decoded[i])) is_sent_[i] = true;
      }
    }
  }
  bool operator[](size_t i) const { return is_sent_[i]; }

 private:
  const GroupOptions& options_;
  std::vector<bool> is_sent_;
};

// One rank before a step: what its gradient will add to its residual, and its velocity then.
struct Corrected {
  Corrected(const Momentum& momentum, const testing::Rank& rank, const std::vector<float>& gradient)
      : residual(rank.residual) {
    for (size_t i = 0; i < gradient.size(); ++i) {
      velocity.push_back(momentum.factor * rank.velocity[i] + gradient[i]);
      update.push_back(momentum.is_nesterov ? gradient[i] + momentum.factor * velocity[i]
                                            : velocity[i]);
    }
  }
  std::vector<float> residual, velocity, update;
};

void check_conserved(Group& group, const std::vector<Corrected>& before) {
  double largest = 0;  // rotations mix the elements of a block
  for (const Corrected& rank : before) {
    for (size_t i = 0; i < rank.update.size(); ++i) {
      largest = std::fmax(largest, std::fabs(rank.update[i]) + std::fabs(rank.residual[i]));
    }
  }
  const double rounding = group.options().dtype == DType::kFloat32 ? 0 : 0x1p-8;
  for (size_t i = 0; i < before[0].update.size(); ++i) {
    double given = 0;
    double left = 0;
    for (size_t rank = 0; rank < before.size(); ++rank) {
      given += double{before[rank].update[i]} + double{before[rank].residual[i]};
      left += double{group.ranks()[rank].residual[i]};
    }
    const double delivered = group.rank(0).result[i];
    const auto num_ranks = static_cast<double>(before.size());
    CAPTURE(i);
    REQUIRE(std::fabs(delivered + left - given) <=
            2e-6 * num_ranks * largest + rounding * std::fabs(given - left));
  }
}

void check_steps(const GroupOptions& options, int num_steps) {
  Group group(options);
  for (uint32_t step = 0; step < static_cast<uint32_t>(num_steps); ++step) {
    const auto gradients = testing::random_gradients(options, Values::kNormal, step);
    std::vector<Corrected> before;
    std::vector<Sent> sent;
    for (size_t rank = 0; rank < gradients.size(); ++rank) {
      before.emplace_back(options.momentum, group.ranks()[rank], gradients[rank]);
      sent.emplace_back(options);
    }
    InProcessNetwork network(options.world_size);
    run_ranks(network, [&](int rank) {
      const auto transport = network.transport(rank);
      const auto index = static_cast<size_t>(rank);
      group.run_rank(rank, gradients[index], *transport, {step, 5},
                     [&](std::string_view event, ElementRange range, auto payload) {
                       if (event == "encode") sent[index].add(range, payload);
                     });
    });
    testing::check_ranks_identical(group);
    check_conserved(group, before);
    size_t num_masked = 0;
    for (size_t rank = 0; rank < gradients.size(); ++rank) {
      CAPTURE(rank);
      for (size_t i = 0; i < gradients[rank].size(); ++i) {
        CAPTURE(i);
        const bool is_masked = sent[rank][i];
        num_masked += is_masked;
        const float expected = is_masked ? 0.0f : before[rank].velocity[i];
        REQUIRE(group.ranks()[rank].velocity[i] == expected);
      }
    }
    REQUIRE(num_masked > 0);
  }
}

TEST_CASE("nothing is lost, and velocities stop where this rank sent: every schedule") {
  GroupOptions options{.num_elements = testing::kMixedElements, .has_velocity = true};
  options.runs = testing::mixed_runs();
  options.other_codecs = testing::mixed_codecs();
  const std::vector<CodecSpec> codecs{{"topk", 0.02}, {"int8"}};
  for (const DType dtype : testing::kAllDTypes) {
    for (const bool is_nesterov : {false, true}) {
      options.dtype = dtype;
      options.momentum = {0.9f, is_nesterov};
      options.slice_elements = is_nesterov ? 1024 : 0;
      testing::for_each_group(options, codecs,
                              [](const GroupOptions& each) { check_steps(each, 3); });
    }
  }
}

TEST_CASE("the same with threads") {
  GroupOptions options{.num_elements = 300'007, .num_threads = 3, .has_velocity = true};
  options.runs = {{150'000, 0}, {7, 1}, {150'000, 0}};
  options.momentum = {0.9f, false};
  testing::for_each_group(options, {{"topk", 0.02}}, [](const GroupOptions& each) {
    if (each.world_size == 2) check_steps(each, 2);
  });
}

TEST_CASE("a gradient that is not finite reaches every rank; the next step is a normal one") {
  GroupOptions some{.num_elements = testing::kMixedElements, .has_velocity = true};
  some.runs = testing::mixed_runs();
  some.other_codecs = testing::mixed_codecs();
  some.momentum = {0.9f, false};
  for (const DType dtype : testing::kAllDTypes) {
    some.dtype = dtype;
    testing::for_each_group(some, {{"topk", 0.02}}, [](const GroupOptions& options) {
      Group group(options);
      group.all_reduce(testing::random_gradients(options, Values::kNormal, 1));
      auto gradients = testing::random_gradients(options, Values::kNormal, 2);
      const size_t spoilt[] = {0, 1505, 2000, 3000, 10'999};
      for (const size_t i : spoilt) gradients.back()[i] = testing::kInfinity;
      group.all_reduce(gradients);
      testing::check_ranks_identical(group);
      for (const size_t i : spoilt) REQUIRE_FALSE(std::isfinite(group.rank(0).result[i]));
      for (const testing::Rank& rank : group.ranks()) {
        REQUIRE(testing::all_finite(rank.residual));
        REQUIRE(testing::all_finite(rank.velocity));
      }
      group.all_reduce(testing::random_gradients(options, Values::kNormal, 3));
      REQUIRE(testing::all_finite(group.rank(0).result));
    });
  }
}

}  // namespace
}  // namespace fastcomm
