// What the schedules deliver over many steps, without error feedback, and with plain numbers.

#include <algorithm>
#include <cmath>

#include "all_reduce.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Group;
using testing::GroupOptions;
using testing::Values;

TEST_CASE("over many steps the delivered sums reach the sum of all gradients") {
  constexpr int kNumSteps = 20;
  testing::for_each_group({.num_elements = 2000}, [&](const GroupOptions& options) {
    if (options.world_size != 3) return;
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

TEST_CASE("residuals stay small, in blocks of every length") {
  for (const int64_t num_elements : {1, 2, 3, 7, 9, 100, 257}) {
    testing::for_each_group({.num_elements = num_elements}, [](const GroupOptions& options) {
      if (options.world_size != 8) return;
      Group group(options);
      for (int step = 0; step < 20; ++step) {
        group.all_reduce(
            testing::random_gradients(options, Values::kNormal, static_cast<uint64_t>(step)));
      }
      float largest = 0;
      for (const testing::Rank& rank : group.ranks()) {
        for (const float residual : rank.residual) {
          largest = std::fmax(largest, std::fabs(residual));
        }
      }
      // Of gradients of about 1. top-k keeps a value until it is among the largest.
      CHECK(largest < (options.codec.name == "topk" ? 40 : 10 * options.world_size));
    });
  }
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

TEST_CASE("the factor multiplies what is delivered and nothing else") {
  testing::for_each_group({.num_elements = 2000}, [](GroupOptions options) {
    Group plain(options);
    options.factor = 0.25f;  // a power of two: exact
    Group scaled(options);
    for (const uint64_t step : {1, 2}) {
      const auto gradients = testing::random_gradients(options, Values::kNormal, step);
      plain.all_reduce(gradients);
      scaled.all_reduce(gradients);
    }
    for (int rank = 0; rank < options.world_size; ++rank) {
      std::vector<float> expected = plain.rank(rank).result;
      for (float& value : expected) value *= options.factor;
      REQUIRE(testing::same_bits(scaled.rank(rank).result, expected));
      REQUIRE(testing::same_bits(scaled.rank(rank).residual, plain.rank(rank).residual));
    }
  });
}

TEST_CASE("without error feedback the ranks agree all the same") {
  testing::for_each_group({.num_elements = 3001}, [](const GroupOptions& options) {
    Group group(options);
    for (testing::Rank& rank : group.ranks()) rank.residual.clear();
    group.all_reduce(testing::random_gradients(options, Values::kNormal, 1));
    testing::check_ranks_identical(group);
  });
}

// What a rank sends, from the schedules' descriptions.
template <class PayloadBytes>
int64_t expected_wire_bytes(const GroupOptions& options, const BucketShape& shape, int rank,
                            PayloadBytes&& payload_bytes) {
  const int n = options.world_size;
  if (options.schedule == "gather") return (n - 1) * payload_bytes({0, options.num_elements});
  const auto segments = cut_segments(shape, n);
  auto segment_bytes = [&](int segment) {
    return payload_bytes(segments[static_cast<size_t>((segment % n + n) % n)]);
  };
  int64_t bytes = 0;
  if (options.schedule == "ring") {
    for (int hop = 0; hop < 2 * (n - 1); ++hop) bytes += segment_bytes(rank - hop);
  } else {
    REQUIRE(options.schedule == "scatter_gather");
    for (int peer = 1; peer < n; ++peer) bytes += segment_bytes(rank + peer) + segment_bytes(rank);
  }
  return bytes;
}

TEST_CASE("wire_bytes counts the payloads that are sent, headers included") {
  const GroupOptions some{.num_elements = 20'011, .slice_elements = 2048};
  testing::for_each_group(some, [](const GroupOptions& options) {
    Group group(options);
    group.all_reduce(testing::random_gradients(options, Values::kNormal, 1));

    CodecWorkspace workspace;
    BucketCodec bucket({options.codec}, {nullptr, DType::kFloat32, nullptr, options.num_elements},
                       {}, 1, 0, workspace);
    auto payload_bytes = [&](ElementRange range) {
      int64_t bytes = 0;
      for (const ElementRange slice : cut_slices(range, options.slice_elements)) {
        bytes += bucket.payload_bytes(slice);
      }
      return bytes;
    };
    for (int rank = 0; rank < options.world_size; ++rank) {
      CHECK(group.rank(rank).measurements.wire_bytes ==
            expected_wire_bytes(options, bucket.shape(), rank, payload_bytes));
    }
  });
}

}  // namespace
}  // namespace fastcomm
