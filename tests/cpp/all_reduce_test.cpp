// The invariants of the contract over ranks: all ranks and all runs give the same bits, and what a
// sum lacks is in the residuals.

#include "all_reduce.h"

#include <cmath>

#include "doctest.h"
#include "mixed_codecs.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

constexpr int64_t kSizes[] = {0, 1, 5, 511, 513, 4096 + 7};

// Half a unit of the last place of a result's dtype, relative to its magnitude.
double rounding(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

using Vectors = std::vector<std::vector<float>>;  // of each rank

// What each element's sum is made of, and so what f32 rounding is relative to. The rotation mixes
// the elements of a block: there, to the largest.
std::vector<double> magnitudes_of(Group& group, const Vectors& gradients,
                                  const Vectors& residuals_before) {
  std::vector<double> magnitudes(group.rank(0).result.size());
  double largest = 0;
  for (size_t i = 0; i < magnitudes.size(); ++i) {
    for (size_t rank = 0; rank < gradients.size(); ++rank) {
      magnitudes[i] += std::fabs(gradients[rank][i]) + std::fabs(residuals_before[rank][i]) +
                       std::fabs(group.ranks()[rank].residual[i]);
    }
    largest = std::fmax(largest, magnitudes[i]);
  }
  for (const CodecSpec& codec : group.options().codecs()) {
    if (testing::is_rotated(codec)) magnitudes.assign(magnitudes.size(), largest);
  }
  return magnitudes;
}

// delivered + sum of residuals = sum of gradients + sum of previous residuals, element by element,
// up to f32 rounding of the additions (and to the rounding of the result to a narrower dtype).
void check_conserved(Group& group, const Vectors& gradients, const Vectors& residuals_before) {
  const double result_rounding = rounding(group.options().dtype);
  const double smallest = group.options().dtype == DType::kFloat16 ? 0x1p-24 : 0x1p-140;
  const std::vector<double> magnitudes = magnitudes_of(group, gradients, residuals_before);
  for (size_t i = 0; i < magnitudes.size(); ++i) {
    double before = 0;
    double after = 0;
    for (size_t rank = 0; rank < gradients.size(); ++rank) {
      before += double{gradients[rank][i]} + double{residuals_before[rank][i]};
      after += double{group.ranks()[rank].residual[i]};
    }
    const double delivered = group.rank(0).result[i];
    const double tolerance =
        1e-6 * magnitudes[i] + result_rounding * std::fabs(before - after) + smallest;
    if (std::fabs(delivered + after - before) <= tolerance) continue;
    CAPTURE(i);
    CAPTURE(before);
    CAPTURE(after);
    CAPTURE(delivered);
    FAIL("delivered + residuals after != gradients + residuals before");
  }
}

Vectors residuals_of(Group& group) {
  Vectors residuals;
  for (const testing::Rank& rank : group.ranks()) residuals.push_back(rank.residual);
  return residuals;
}

void check_steps(const GroupOptions& options, Values kind, int num_steps) {
  Group group(options);
  Group again(options);
  for (int step = 0; step < num_steps; ++step) {
    const auto gradients = testing::random_gradients(options, kind, static_cast<uint64_t>(step));
    const auto residuals_before = residuals_of(group);
    group.all_reduce(gradients);
    testing::check_ranks_identical(group);
    check_conserved(group, gradients, residuals_before);
    again.all_reduce(gradients);
    testing::check_groups_identical(again, group);
  }
}

TEST_CASE("ranks agree bit for bit, runs too, and nothing is lost: every dtype and size") {
  for (const DType dtype : testing::kAllDTypes) {
    for (const int64_t num_elements : kSizes) {
      testing::for_each_group(
          {.num_elements = num_elements, .dtype = dtype},
          [](const GroupOptions& options) { check_steps(options, Values::kNormal, 2); });
    }
  }
}

TEST_CASE("the same with mixed runs, some compressed and some not") {
  GroupOptions options{.num_elements = 4096 + 7};
  options.runs = {{10, 1}, {1500, 0}, {1, 1}, {600, 0}, {0, 0}, {700, 1}, {1292, 0}};
  for (const DType dtype : testing::kAllDTypes) {
    options.dtype = dtype;
    testing::for_each_group(
        options, [](const GroupOptions& each) { check_steps(each, Values::kNormal, 2); });
  }
}

TEST_CASE("the same with a codec for each run") {
  GroupOptions options{.num_elements = testing::kMixedElements};
  options.runs = testing::mixed_runs();
  options.other_codecs = testing::mixed_codecs();
  for (const DType dtype : testing::kAllDTypes) {
    for (const int64_t slice_elements : {0, 1024}) {
      options.dtype = dtype;
      options.slice_elements = slice_elements;
      testing::for_each_group(
          options, [](const GroupOptions& each) { check_steps(each, Values::kNormal, 2); });
    }
  }
}

TEST_CASE("the same with several slices a segment, the last one ragged") {
  GroupOptions options{.num_elements = 20'011, .slice_elements = 1024};
  testing::for_each_group(options,
                          [](const GroupOptions& each) { check_steps(each, Values::kNormal, 2); });
}

TEST_CASE("the same with values that are mostly zero, tie, or span many magnitudes") {
  for (const Values kind : {Values::kMostlyZero, Values::kHalves, Values::kTiny}) {
    testing::for_each_group({.num_elements = 4096 + 7}, [&](const GroupOptions& options) {
      CAPTURE(static_cast<int>(kind));
      check_steps(options, kind, 2);
    });
  }
}

TEST_CASE("the same with a bucket of many blocks") {
  testing::for_each_group({.num_elements = 100'003}, [](const GroupOptions& options) {
    check_steps(options, Values::kNormal, 1);
  });
}

TEST_CASE("the same with threads that share the work of a bucket") {
  testing::for_each_group({.num_elements = 300'007, .num_threads = 3}, [](GroupOptions options) {
    if (options.world_size != 2) return;
    check_steps(options, Values::kNormal, 2);
    Group group(options);
    options.num_threads = 1;
    Group alone(options);
    const auto gradients = testing::random_gradients(options, Values::kNormal, 1);
    group.all_reduce(gradients);
    alone.all_reduce(gradients);
    testing::check_groups_identical(group, alone);
  });
}

TEST_CASE("the same with slices of the codec's own size") {
  for (const Schedule& schedule : schedules()) {
    CAPTURE(schedule.name);
    check_steps(
        {.codec = {"fp32"}, .schedule = schedule.name, .world_size = 2, .num_elements = 1'300'001},
        Values::kNormal, 1);
  }
}

}  // namespace
}  // namespace fastcomm
