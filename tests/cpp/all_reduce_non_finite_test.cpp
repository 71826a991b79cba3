// A NaN or Inf on one rank reaches every rank, and no residual is spoilt by it.

#include <cmath>

#include "all_reduce.h"
#include "doctest.h"
#include "mixed_codecs.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

constexpr int64_t kNumElements = 3001;

void check_spoilt_element(GroupOptions options, int spoilt_rank, size_t element, float value) {
  CAPTURE(options.codec.name);
  CAPTURE(options.schedule);
  CAPTURE(options.world_size);
  CAPTURE(static_cast<int>(options.dtype));
  CAPTURE(spoilt_rank);
  CAPTURE(element);
  CAPTURE(value);
  Group group(options);
  group.all_reduce(testing::random_gradients(options, Values::kNormal, 1));
  const float previous = group.rank(spoilt_rank).residual[element];
  auto gradients = testing::random_gradients(options, Values::kNormal, 2);
  gradients[static_cast<size_t>(spoilt_rank)][element] = value;
  group.all_reduce(gradients);

  for (const testing::Rank& rank : group.ranks()) {
    REQUIRE_FALSE(std::isfinite(rank.result[element]));
    REQUIRE(testing::same_bits(rank.result, group.rank(0).result));
    REQUIRE(testing::all_finite(rank.residual));
  }
  REQUIRE(group.rank(spoilt_rank).residual[element] == previous);

  // The next step is a normal one again.
  group.all_reduce(testing::random_gradients(options, Values::kNormal, 3));
  REQUIRE(testing::all_finite(group.rank(0).result));
}

TEST_CASE("one element that is not finite is not finite on every rank") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      for (const int world_size : {1, 2, 3, 5}) {
        for (const DType dtype : testing::kAllDTypes) {
          GroupOptions options{.codec = codec,
                               .schedule = schedule.name,
                               .world_size = world_size,
                               .num_elements = kNumElements,
                               .dtype = dtype};
          const float spoilt_values[] = {testing::kNaN, testing::kInfinity, -testing::kInfinity};
          for (const size_t element : {size_t{0}, size_t{1500}, size_t{3000}}) {
            for (int rank = 0; rank < world_size; ++rank) {
              const auto which = (element + static_cast<size_t>(rank + world_size)) % 3;
              check_spoilt_element(options, rank, element, spoilt_values[which]);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("the same for an element of an uncompressed run") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      GroupOptions options{.codec = codec,
                           .schedule = schedule.name,
                           .world_size = 3,
                           .num_elements = kNumElements,
                           .runs = {{1000, 0}, {800, 1}, {1201, 0}}};
      check_spoilt_element(options, 1, 1500, testing::kNaN);
    }
  }
}

TEST_CASE("the same for an element of each run of a bucket with many codecs") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      GroupOptions options{.codec = codec,
                           .schedule = schedule.name,
                           .world_size = 3,
                           .num_elements = testing::kMixedElements,
                           .runs = testing::mixed_runs(),
                           .other_codecs = testing::mixed_codecs()};
      size_t end = 0;
      for (const Run& run : options.runs) {
        end += static_cast<size_t>(run.num_elements);
        if (run.num_elements > 0) check_spoilt_element(options, 1, end - 1, testing::kNaN);
      }
    }
  }
}

TEST_CASE("the same element spoilt on several ranks, and many elements on one") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      CAPTURE(codec.name);
      CAPTURE(schedule.name);
      const GroupOptions options{
          .codec = codec, .schedule = schedule.name, .world_size = 5, .num_elements = kNumElements};
      Group group(options);
      auto gradients = testing::random_gradients(options, Values::kNormal, 1);
      for (const size_t rank : {1, 2, 4}) gradients[rank][2000] = testing::kNaN;
      // More than top-k's k: not all can be sent, but the rank's residual must not keep them.
      for (size_t i = 0; i < 500; ++i) gradients[3][i] = testing::kInfinity;
      group.all_reduce(gradients);
      testing::check_ranks_identical(group);
      for (const testing::Rank& rank : group.ranks()) REQUIRE(testing::all_finite(rank.residual));
      REQUIRE_FALSE(std::isfinite(group.rank(0).result[2000]));
      REQUIRE_FALSE(testing::all_finite(std::span(group.rank(0).result).first(500)));
    }
  }
}

TEST_CASE("with stochastic rounding one element that is not finite reaches every rank") {
  testing::for_each_group(
      {.num_elements = kNumElements}, testing::stochastic_codecs(),
      [](const GroupOptions& options) {
        Group group(options);
        auto gradients = testing::random_gradients(options, Values::kNormal, 1);
        gradients.back()[1500] = testing::kInfinity;
        group.all_reduce(gradients);
        testing::check_ranks_identical(group);
        REQUIRE_FALSE(std::isfinite(group.rank(0).result[1500]));
        group.all_reduce(testing::random_gradients(options, Values::kNormal, 2));
        REQUIRE(testing::all_finite(group.rank(0).result));
      });
}

TEST_CASE("opposite infinities on two ranks are not finite on every rank") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      CAPTURE(codec.name);
      CAPTURE(schedule.name);
      const GroupOptions options{
          .codec = codec, .schedule = schedule.name, .world_size = 3, .num_elements = kNumElements};
      Group group(options);
      auto gradients = testing::random_gradients(options, Values::kNormal, 1);
      gradients[0][17] = testing::kInfinity;
      gradients[2][17] = -testing::kInfinity;
      group.all_reduce(gradients);
      for (const testing::Rank& rank : group.ranks()) {
        CHECK_FALSE(std::isfinite(rank.result[17]));
        CHECK(testing::same_bits(rank.result, group.rank(0).result));
      }
    }
  }
}

TEST_CASE("a sum that overflows never spoils a residual") {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      CAPTURE(codec.name);
      CAPTURE(schedule.name);
      const GroupOptions options{
          .codec = codec, .schedule = schedule.name, .world_size = 5, .num_elements = 600};
      Group group(options);
      for (int step = 0; step < 3; ++step) {
        std::vector<std::vector<float>> gradients(5, std::vector<float>(600, 1e38f));
        group.all_reduce(gradients);
        for (const testing::Rank& rank : group.ranks()) {
          CHECK(testing::same_bits(rank.result, group.rank(0).result));
          CHECK(testing::all_finite(rank.residual));
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastcomm
