// The invariants of the contract over ranks: all ranks and all runs give the same bits, and what a
// sum lacks is in the residuals.

#include "all_reduce.h"

#include <cmath>

#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

constexpr int kWorldSizes[] = {1, 2, 3, 5, 8};
constexpr int64_t kSizes[] = {0, 1, 5, 511, 513, 4096 + 7};

// Half a unit of the last place of a result's dtype, relative to its magnitude.
double rounding(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

void check_ranks_identical(Group& group) {
  for (const testing::Rank& rank : group.ranks()) {
    REQUIRE(testing::same_bits(rank.result, group.rank(0).result));
  }
}

// delivered + sum of residuals = sum of gradients + sum of previous residuals, element by element,
// up to f32 rounding of the additions (and to the rounding of the result to a narrower dtype).
void check_conserved(Group& group, const std::vector<std::vector<float>>& gradients,
                     const std::vector<std::vector<float>>& residuals_before) {
  const double result_rounding = rounding(group.options().dtype);
  const double smallest = group.options().dtype == DType::kFloat16 ? 0x1p-24 : 0;
  for (size_t i = 0; i < group.rank(0).result.size(); ++i) {
    double before = 0;
    double after = 0;
    double magnitude = 0;
    for (size_t rank = 0; rank < gradients.size(); ++rank) {
      const double residual = group.ranks()[rank].residual[i];
      before += double{gradients[rank][i]} + double{residuals_before[rank][i]};
      after += residual;
      magnitude += std::fabs(gradients[rank][i]) + std::fabs(residuals_before[rank][i]) +
                   std::fabs(residual);
    }
    const double delivered = group.rank(0).result[i];
    CAPTURE(i);
    CAPTURE(before);
    CAPTURE(after);
    CAPTURE(delivered);
    REQUIRE(std::fabs(delivered + after - before) <=
            1e-6 * magnitude + result_rounding * std::fabs(before - after) + smallest);
  }
}

std::vector<std::vector<float>> residuals_of(Group& group) {
  std::vector<std::vector<float>> residuals;
  for (const testing::Rank& rank : group.ranks()) residuals.push_back(rank.residual);
  return residuals;
}

void check_steps(const GroupOptions& options, Values kind, int num_steps) {
  CAPTURE(options.codec.name);
  CAPTURE(options.schedule);
  CAPTURE(options.world_size);
  CAPTURE(options.num_elements);
  CAPTURE(static_cast<int>(options.dtype));
  CAPTURE(options.runs.size());
  CAPTURE(options.slice_elements);
  Group group(options);
  Group again(options);
  for (int step = 0; step < num_steps; ++step) {
    const auto gradients = testing::random_gradients(options, kind, static_cast<uint64_t>(step));
    const auto residuals_before = residuals_of(group);
    group.all_reduce(gradients);
    check_ranks_identical(group);
    check_conserved(group, gradients, residuals_before);
    again.all_reduce(gradients);
    for (int rank = 0; rank < options.world_size; ++rank) {
      REQUIRE(testing::same_bits(again.rank(rank).result, group.rank(rank).result));
      REQUIRE(testing::same_bits(again.rank(rank).residual, group.rank(rank).residual));
    }
  }
}

// Calls visit(options) for all schedules, codecs and world sizes.
template <class Visit>
void for_each_group(GroupOptions options, Visit&& visit) {
  for (const Schedule& schedule : schedules()) {
    for (const CodecSpec& codec : testing::tested_codecs()) {
      for (const int world_size : kWorldSizes) {
        options.schedule = schedule.name;
        options.codec = codec;
        options.world_size = world_size;
        visit(options);
      }
    }
  }
}

TEST_CASE("ranks agree bit for bit, runs too, and nothing is lost: every dtype and size") {
  for (const DType dtype : testing::kAllDTypes) {
    for (const int64_t num_elements : kSizes) {
      for_each_group({.num_elements = num_elements, .dtype = dtype},
                     [](const GroupOptions& options) { check_steps(options, Values::kNormal, 3); });
    }
  }
}

TEST_CASE("the same with mixed runs, some compressed and some not") {
  GroupOptions options{.num_elements = 4096 + 7};
  options.runs = {{10, false}, {1500, true}, {1, false},  {600, true},
                  {0, true},   {700, false}, {1292, true}};
  for (const DType dtype : testing::kAllDTypes) {
    options.dtype = dtype;
    for_each_group(options,
                   [](const GroupOptions& each) { check_steps(each, Values::kNormal, 3); });
  }
}

TEST_CASE("the same with several slices a segment, the last one ragged") {
  GroupOptions options{.num_elements = 20'011, .slice_elements = 1024};
  for_each_group(options, [](const GroupOptions& each) { check_steps(each, Values::kNormal, 3); });
}

TEST_CASE("the same with values that are mostly zero, tie, or span many magnitudes") {
  for (const Values kind : {Values::kMostlyZero, Values::kHalves, Values::kTiny}) {
    for_each_group({.num_elements = 4096 + 7}, [&](const GroupOptions& options) {
      CAPTURE(static_cast<int>(kind));
      check_steps(options, kind, 2);
    });
  }
}

TEST_CASE("the same with a bucket of many blocks") {
  for_each_group({.num_elements = 100'003},
                 [](const GroupOptions& options) { check_steps(options, Values::kNormal, 1); });
}

TEST_CASE("the same with slices of the codec's own size") {
  for (const Schedule& schedule : schedules()) {
    check_steps(
        {.codec = {"fp32"}, .schedule = schedule.name, .world_size = 2, .num_elements = 1'300'001},
        Values::kNormal, 1);
  }
}

TEST_CASE("over many steps the delivered sums reach the sum of all gradients") {
  constexpr int kNumSteps = 20;
  for_each_group({.num_elements = 2000}, [&](const GroupOptions& options) {
    if (options.world_size != 3) return;
    CAPTURE(options.codec.name);
    CAPTURE(options.schedule);
    Group group(options);
    std::vector<double> missing(2000);
    for (int step = 0; step < kNumSteps; ++step) {
      const auto gradients =
          testing::random_gradients(options, Values::kNormal, static_cast<uint64_t>(step));
      group.all_reduce(gradients);
      for (size_t i = 0; i < missing.size(); ++i) {
        for (const auto& gradient : gradients) missing[i] += double{gradient[i]};
        missing[i] -= double{group.rank(0).result[i]};
      }
    }
    for (const testing::Rank& rank : group.ranks()) {
      for (size_t i = 0; i < missing.size(); ++i) missing[i] -= double{rank.residual[i]};
    }
    // Relative to the 60 gradients of magnitude 1 that were added up.
    for (const double rest : missing) REQUIRE(std::fabs(rest) <= 1e-6 * kNumSteps * 3);
  });
}

TEST_CASE("fp32 is the plain sum, times the factor; it leaves no residual") {
  for (const Schedule& schedule : schedules()) {
    const GroupOptions options{.codec = {"fp32"},
                               .schedule = schedule.name,
                               .world_size = 4,
                               .num_elements = 3001,
                               .factor = 0.25f};
    Group group(options);
    // Integers: every order of summation gives the same.
    std::vector<std::vector<float>> gradients(4, std::vector<float>(3001));
    for (size_t i = 0; i < 3001; ++i) {
      for (size_t rank = 0; rank < 4; ++rank)
        gradients[rank][i] = static_cast<float>(i * (rank + 1));
    }
    group.all_reduce(gradients);
    for (size_t i = 0; i < 3001; ++i) {
      REQUIRE(group.rank(2).result[i] == 2.5f * static_cast<float>(i));
      REQUIRE(group.rank(2).residual[i] == 0);
    }
  }
}

TEST_CASE("without error feedback the ranks agree all the same") {
  for_each_group({.num_elements = 3001}, [](const GroupOptions& options) {
    CAPTURE(options.codec.name);
    CAPTURE(options.schedule);
    CAPTURE(options.world_size);
    Group group(options);
    for (testing::Rank& rank : group.ranks()) rank.residual.clear();
    group.all_reduce(testing::random_gradients(options, Values::kNormal, 1));
    check_ranks_identical(group);
  });
}

TEST_CASE("wire_bytes counts the payloads of the hops, headers included") {
  for_each_group({.num_elements = 20'011, .slice_elements = 2048}, [](const GroupOptions& options) {
    CAPTURE(options.codec.name);
    CAPTURE(options.schedule);
    CAPTURE(options.world_size);
    Group group(options);
    group.all_reduce(testing::random_gradients(options, Values::kNormal, 1));

    CodecWorkspace workspace;
    BucketCodec bucket(options.codec, {nullptr, DType::kFloat32, nullptr, options.num_elements}, {},
                       1, workspace);
    auto payload_bytes = [&](ElementRange range) {
      int64_t bytes = 0;
      for (const ElementRange slice : cut_slices(range, options.slice_elements)) {
        bytes += bucket.payload_bytes(slice);
      }
      return bytes;
    };
    const int n = options.world_size;
    const auto segments = cut_segments(bucket.shape(), n);
    for (int rank = 0; rank < n; ++rank) {
      int64_t expected = 0;
      if (options.schedule == "gather") {
        expected = (n - 1) * payload_bytes({0, options.num_elements});
      } else {
        for (int hop = 0; hop < 2 * (n - 1); ++hop) {
          expected += payload_bytes(segments[static_cast<size_t>(((rank - hop) % n + n) % n)]);
        }
      }
      CHECK(group.rank(rank).measurements.wire_bytes == expected);
    }
  });
}

}  // namespace
}  // namespace fastcomm
