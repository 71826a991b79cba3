// Ranks that are about to exchange different things are told so, before any payload moves.

#include "collectives/announcement.h"

#include <doctest.h>

#include <string>

#include "codecs/bucket_codec.h"
#include "ranks.h"

namespace fastcomm::testing {
namespace {

struct Call {
  CodecSpec codec{"int8"};
  int64_t num_elements = 5000;
  std::vector<Run> runs;
  ExchangeId id{41, 0};
  std::string schedule = "ring";
};

std::vector<std::exception_ptr> announce(const std::vector<Call>& calls) {
  InProcessNetwork network(static_cast<int>(calls.size()));
  return errors_of_ranks(network, [&](int rank) {
    const Call& call = calls[static_cast<size_t>(rank)];
    CodecWorkspace workspace;
    BucketCodec codec(call.codec, {nullptr, DType::kFloat32, nullptr, call.num_elements}, call.runs,
                      1.0f, rank, workspace);
    const auto transport = network.transport(rank);
    PayloadBuffers buffers;
    Measurements measurements;
    Exchange exchange(codec, *transport, buffers, measurements, call.id);
    compare_with_neighbours(exchange, call.schedule);
    CHECK(measurements.wire_bytes == kAnnouncementBytes * (network.world_size() == 2 ? 1 : 2));
  });
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

TEST_CASE("ranks that do the same go on") {
  for (int world_size : {2, 3, 5}) {
    for (const auto& error : announce(std::vector<Call>(static_cast<size_t>(world_size)))) {
      CHECK(error == nullptr);
    }
  }
}

TEST_CASE("each kind of difference is named on both sides") {
  Call step, size, codec, layout, algorithm, density;
  step.id.step = 42;
  size.num_elements = 5001;
  codec.codec = {"int4"};
  layout.runs = {{1000, false}, {4000, true}};
  algorithm.schedule = "gather";
  density.codec = {"topk", 0.05};
  const std::vector<std::pair<Call, std::string>> cases{
      {step, "step 42"},  {size, "5001 elements"}, {codec, "int4"},
      {layout, "layout"}, {algorithm, "gather"},   {density, "topk k=250"}};
  for (const auto& [other, text] : cases) {
    CAPTURE(text);
    for (const auto& error : announce({Call{}, other})) check_mismatch(error, text);
  }
}

TEST_CASE("the same sizes in another order are another layout") {
  Call first, second;
  first.runs = {{1000, false}, {3000, true}, {1000, false}};
  second.runs = {{1000, true}, {3000, false}, {1000, true}};
  for (const auto& error : announce({first, second})) check_mismatch(error, "layout");
}

}  // namespace fastcomm::testing
