// Ranks that are about to exchange different things are told so, before any payload is used; small
// buckets are exchanged with the openings alone.

#include "collectives/opening.h"

#include <doctest.h>

#include <atomic>
#include <string>

#include "all_reduce.h"
#include "codecs/bucket_codec.h"
#include "collectives/in_process_ranks.h"

namespace fastcomm::testing {
namespace {

struct Call {
  CodecSpec codec{"int8"};
  int64_t num_elements = 5000;
  std::vector<Run> runs = {};
  std::vector<CodecSpec> other_codecs = {};  // of the runs; none: fp32
  ExchangeId id{41, 0};
  std::string schedule = "ring";
};

// What each rank has at the end, and what it sent.
struct Outcome {
  std::vector<std::exception_ptr> errors;
  std::vector<std::vector<float>> results;
  std::vector<std::vector<float>> residuals;
  std::vector<int64_t> wire_bytes;
};

Outcome run_calls(const std::vector<Call>& calls, int num_times = 1) {
  const size_t num_ranks = calls.size();
  InProcessNetwork network(static_cast<int>(num_ranks));
  Outcome outcome{{}, {}, {}, std::vector<int64_t>(num_ranks)};
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    outcome.results.push_back(random_values(Values::kNormal, calls[rank].num_elements, rank));
    outcome.residuals.emplace_back(outcome.results.back().size());
  }
  outcome.errors = errors_of_ranks(network, [&](int rank) {
    const auto index = static_cast<size_t>(rank);
    Call call = calls[index];
    const auto transport = network.transport(rank);
    Openings openings(*transport);
    PayloadBuffers buffers;
    Measurements measurements;
    CodecWorkspace workspace;
    for (int i = 0; i < num_times; ++i, ++call.id.step) {
      BucketCodec codec(codec_list(call.codec, call.runs, call.other_codecs),
                        {outcome.results[index].data(), DType::kFloat32,
                         outcome.residuals[index].data(), call.num_elements},
                        call.runs, 1.0f, rank, workspace);
      Exchange exchange(codec, *transport, buffers, measurements, call.id);
      openings.run(exchange, schedule(call.schedule));
    }
    outcome.wire_bytes[index] = measurements.wire_bytes;
  });
  return outcome;
}

void check_mismatch(const std::exception_ptr& error, const std::string& text) {
  REQUIRE(error != nullptr);
  try {
    std::rethrow_exception(error);
  } catch (const MismatchError& mismatch) {
    CHECK(std::string(mismatch.what()).find(text) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("ranks that do the same go on, one exchange after another") {
  for (const Schedule& one : schedules()) {
    for (const int world_size : kWorldSizes) {
      CAPTURE(one.name);
      CAPTURE(world_size);
      Call call;
      call.schedule = one.name;
      const Outcome outcome = run_calls(std::vector(static_cast<size_t>(world_size), call), 5);
      for (const auto& error : outcome.errors) REQUIRE(error == nullptr);
      for (const auto& result : outcome.results) REQUIRE(same_bits(result, outcome.results[0]));
    }
  }
}

TEST_CASE("a small bucket is exchanged in the openings, with the bits of gather") {
  for (const CodecSpec& codec : tested_codecs()) {
    for (const int world_size : {2, 3, 5, 8}) {
      CAPTURE(codec.name);
      CAPTURE(world_size);
      Call call{.codec = codec, .num_elements = 1300, .schedule = "gather"};
      call.runs = {{1100, 0}, {200, 1}};
      const Outcome outcome = run_calls(std::vector(static_cast<size_t>(world_size), call));
      GroupOptions options{.codec = codec, .schedule = "gather", .world_size = world_size};
      options.num_elements = call.num_elements;
      options.runs = call.runs;
      Group group(options);
      std::vector<std::vector<float>> gradients;
      for (int rank = 0; rank < world_size; ++rank) {
        gradients.push_back(
            random_values(Values::kNormal, call.num_elements, static_cast<uint64_t>(rank)));
      }
      group.all_reduce(gradients);
      for (int rank = 0; rank < world_size; ++rank) {
        const auto index = static_cast<size_t>(rank);
        REQUIRE(outcome.errors[index] == nullptr);
        REQUIRE(same_bits(outcome.results[index], group.rank(rank).result));
        REQUIRE(same_bits(outcome.residuals[index], group.rank(rank).residual));
        CHECK(outcome.wire_bytes[index] ==
              group.rank(rank).measurements.wire_bytes + (world_size - 1) * kRecordBytes);
      }
    }
  }
}

TEST_CASE("a bucket that is too large for the openings takes its schedule") {
  for (const int world_size : {2, 3, 8}) {
    CAPTURE(world_size);
    Call call{.codec = {"fp32"}, .schedule = "gather"};
    call.num_elements = largest_opening_payload(world_size) / 4;  // and a header
    const Outcome outcome = run_calls(std::vector(static_cast<size_t>(world_size), call));
    Group group({.codec = call.codec,
                 .schedule = "gather",
                 .world_size = world_size,
                 .num_elements = call.num_elements});
    group.all_reduce(random_gradients(group.options(), Values::kNormal, 1));
    const int num_neighbours = world_size == 2 ? 1 : 2;
    for (const int64_t wire_bytes : outcome.wire_bytes) {
      CHECK(wire_bytes == group.rank(0).measurements.wire_bytes + num_neighbours * kRecordBytes);
    }
  }
}

TEST_CASE("each kind of difference is named on both sides") {
  Call step, size, codec, layout, algorithm, density;
  step.id.step = 42;
  size.num_elements = 5001;
  codec.codec = {"int4"};
  layout.runs = {{1000, 1}, {4000, 0}};
  algorithm.schedule = "gather";
  density.codec = {"topk", 0.05};
  const std::vector<std::pair<Call, std::string>> cases{
      {step, "step 42"},  {size, "5001 elements"}, {codec, "int4"},
      {layout, "layout"}, {algorithm, "gather"},   {density, "topk k=250"}};
  for (const auto& [other, text] : cases) {
    CAPTURE(text);
    for (const auto& error : run_calls({Call{}, other}).errors) check_mismatch(error, text);
  }
}

TEST_CASE("different policies are a difference, also where the main codec is the same") {
  Call call;
  call.runs = {{3000, 0}, {1000, 1}, {500, 2}, {500, 3}};
  call.other_codecs = {{"topk", 0.1}, {.name = "int2", .seed = 7}, {"fp32"}};
  for (const auto& error : run_calls({call, call}).errors) CHECK(error == nullptr);
  Call density = call, seed = call, codec = call, run = call;
  density.other_codecs[0].density = 0.1001;  // as many entries: the payload's size is the same
  seed.other_codecs[1].seed = 8;
  codec.other_codecs[2] = {"bf16"};
  run.runs = {{3000, 0}, {1000, 1}, {500, 3}, {500, 2}};
  for (const Call& other : {density, seed, codec, run}) {
    for (const auto& error : run_calls({call, other}).errors) {
      check_mismatch(error, "int8 +2 codecs, 5000 elements, layout");
    }
  }
}

TEST_CASE("a rank whose bucket is small is told of one whose bucket is not") {
  Call small, usual;
  small.num_elements = 300;
  small.schedule = "gather";
  for (const auto& error : run_calls({small, usual, usual}).errors) REQUIRE(error != nullptr);
}

TEST_CASE("the same sizes in another order are another layout") {
  Call first, second;
  first.runs = {{1000, 1}, {3000, 0}, {1000, 1}};
  second.runs = {{1000, 0}, {3000, 1}, {1000, 0}};
  for (const auto& error : run_calls({first, second}).errors) check_mismatch(error, "layout");
}

}  // namespace fastcomm::testing
