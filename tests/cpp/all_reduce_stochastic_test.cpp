// Stochastic rounding over ranks: no residual, the same bits everywhere, and no bias.

#include <cmath>

#include "all_reduce.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

TEST_CASE("ranks and runs agree bit for bit, step after step") {
  for (const int64_t num_elements : {0, 1, 511, 4103}) {
    for (const DType dtype : testing::kAllDTypes) {
      testing::for_each_group({.num_elements = num_elements, .dtype = dtype, .slice_elements = 512},
                              testing::stochastic_codecs(), [](const GroupOptions& options) {
                                Group group(options);
                                Group again(options);
                                for (const uint64_t step : {1, 2}) {
                                  const auto gradients =
                                      testing::random_gradients(options, Values::kNormal, step);
                                  group.all_reduce(gradients);
                                  again.all_reduce(gradients);
                                  testing::check_ranks_identical(group);
                                  testing::check_groups_identical(group, again);
                                }
                              });
    }
  }
}

TEST_CASE("over many steps the mean of the results is the sum, without bias") {
  constexpr int kNumSteps = 300;
  constexpr size_t kNumElements = 700;
  const GroupOptions some{.num_elements = kNumElements};
  testing::for_each_group(some, testing::stochastic_codecs(), [&](const GroupOptions& options) {
    if (options.world_size > 3) return;
    Group group(options);
    const auto gradients = testing::random_gradients(options, Values::kNormal, 1);
    std::vector<double> errors(kNumElements);
    double squares = 0;
    for (int step = 0; step < kNumSteps; ++step) {
      group.all_reduce(gradients);
      for (size_t i = 0; i < kNumElements; ++i) {
        double error = group.rank(0).result[i];
        for (const auto& gradient : gradients) error -= double{gradient[i]};
        errors[i] += error / kNumSteps;
        squares += error * error;
      }
    }
    // Rounding is at work.
    const double deviation = std::sqrt(squares / (kNumSteps * kNumElements));
    REQUIRE(deviation > 1e-3);
    double mean = 0;
    for (const double error : errors) {
      // A single element's deviation may be twice that of all.
      REQUIRE(std::fabs(error) <= 6 * 2 * deviation / std::sqrt(kNumSteps));
      mean += error / kNumElements;
    }
    REQUIRE(std::fabs(mean) <= 5.5 * deviation / std::sqrt(kNumSteps * kNumElements));
  });
}

TEST_CASE("a step rounds unlike the one before, a rank unlike another") {
  for (const CodecSpec& codec : testing::stochastic_codecs()) {
    CAPTURE(codec.name);
    const GroupOptions options{
        .codec = codec, .schedule = "gather", .world_size = 2, .num_elements = 5000};
    Group group(options);
    const auto gradient = testing::random_values(Values::kNormal, 5000, 1);
    // Both ranks have the same gradient: alike, they would deliver twice what one does.
    group.all_reduce({gradient, gradient});
    const auto first = group.rank(0).result;
    group.all_reduce({gradient, gradient});
    const auto second = group.rank(0).result;
    int num_changed = 0;
    double variance = 0;
    double covariance = 0;
    for (size_t i = 0; i < first.size(); ++i) {
      const double error_before = double{first[i]} - 2 * double{gradient[i]};
      const double error = double{second[i]} - 2 * double{gradient[i]};
      num_changed += first[i] != second[i];
      variance += error * error;
      covariance += error * error_before;
    }
    CHECK(num_changed > 2000);
    CHECK(std::fabs(covariance / variance) < 5.5 / std::sqrt(5000));
  }
}

}  // namespace
}  // namespace fastcomm
