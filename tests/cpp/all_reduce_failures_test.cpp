// Ranks that are out of step: an error, and no rank waits for ever.

#include <string>

#include "all_reduce.h"
#include "doctest.h"
#include "rank_errors.h"

namespace fastcomm {
namespace {

using testing::describe;
using testing::Group;
using testing::GroupOptions;
using testing::is_payload_error;
using testing::Values;

// Each rank runs with the group (that is: codec) and the id that `of_rank` chooses.
template <class OfRank>
std::vector<std::string> errors_of(int world_size, OfRank&& of_rank) {
  InProcessNetwork network(world_size);
  const auto errors = errors_of_ranks(network, [&](int rank) {
    const auto transport = network.transport(rank);
    auto [group, id] = of_rank(rank);
    const auto gradients = testing::random_gradients(group->options(), Values::kNormal, 1);
    group->run_rank(rank, gradients[static_cast<size_t>(rank)], *transport, id);
  });
  return describe(errors);
}

TEST_CASE("a rank that is a step or a bucket ahead") {
  for (const Schedule& schedule : schedules()) {
    for (const int world_size : {2, 3}) {
      for (const CodecSpec& codec : testing::tested_codecs()) {
        for (const bool is_step : {true, false}) {
          CAPTURE(schedule.name);
          CAPTURE(codec.name);
          Group group({.codec = codec,
                       .schedule = schedule.name,
                       .world_size = world_size,
                       .num_elements = 2000});
          const auto errors = errors_of(world_size, [&](int rank) {
            const ExchangeId other = is_step ? ExchangeId{8, 0} : ExchangeId{7, 1};
            return std::pair(&group, rank == 1 ? other : ExchangeId{7, 0});
          });
          bool is_noticed = false;
          for (const std::string& error : errors) {
            CHECK(error != "none");
            is_noticed = is_noticed || is_payload_error(error, "the ranks are out of step");
          }
          CHECK(is_noticed);
        }
      }
    }
  }
}

TEST_CASE("another codec on one rank") {
  for (const Schedule& schedule : schedules()) {
    const int64_t num_elements = 5;  // few enough for payloads of the same size
    Group int8({.codec = {"int8"}, .schedule = schedule.name, .num_elements = num_elements});
    Group int4({.codec = {"int4"}, .schedule = schedule.name, .num_elements = num_elements});
    const auto errors =
        errors_of(2, [&](int rank) { return std::pair(rank == 0 ? &int8 : &int4, ExchangeId{}); });
    bool is_noticed = false;
    for (const std::string& error : errors) {
      CHECK(error != "none");
      is_noticed = is_noticed || is_payload_error(error, "use the same codec on every rank");
    }
    CHECK(is_noticed);
  }
}

TEST_CASE("another density, another size or another algorithm on one rank") {
  Group usual({.codec = {"topk", 0.02}, .num_elements = 2000});
  const GroupOptions others[] = {
      {.codec = {"topk", 0.04}, .num_elements = 2000},
      {.codec = {"topk", 0.02}, .num_elements = 4000},
      {.codec = {"topk", 0.02}, .schedule = "gather", .num_elements = 2000},
      {.codec = {"topk", 0.02}, .schedule = "scatter_gather", .num_elements = 2000},
      {.codec = {"int8"}, .num_elements = 2000},
  };
  for (const GroupOptions& options : others) {
    Group other(options);
    const auto errors = errors_of(
        2, [&](int rank) { return std::pair(rank == 0 ? &usual : &other, ExchangeId{}); });
    for (const std::string& error : errors) CHECK(error != "none");
  }
}

TEST_CASE("a rank that never comes: abort ends the others' wait") {
  for (const Schedule& schedule : schedules()) {
    Group group({.schedule = schedule.name, .world_size = 3, .num_elements = 2000});
    InProcessNetwork network(3);
    const auto gradients = testing::random_gradients(group.options(), Values::kNormal, 1);
    const auto errors = errors_of_ranks(network, [&](int rank) {
      if (rank == 2) throw std::runtime_error("rank 2 is gone");
      const auto transport = network.transport(rank);
      group.run_rank(rank, gradients[static_cast<size_t>(rank)], *transport, {});
    });
    for (const auto& error : errors) CHECK(error != nullptr);
  }
}

}  // namespace
}  // namespace fastcomm
