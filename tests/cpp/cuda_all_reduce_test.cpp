// Groups in which some ranks, or all, have their bucket on a device and payloads in host memory.

#include <vector>

#include "all_reduce.h"
#include "codecs/cuda/bucket_codecs.h"
#include "device_memory.h"
#include "doctest.h"
#include "mixed_codecs.h"

namespace fastcomm {
namespace {

using testing::Bytes;
using testing::DeviceMemory;
using testing::Group;
using testing::GroupOptions;

struct DeviceRank {
  explicit DeviceRank(const GroupOptions& options)
      : residual(Bytes(static_cast<size_t>(options.num_elements) * sizeof(float))) {
    workspace.allocate = testing::allocate_device;
  }
  DeviceMemory residual;
  CudaWorkspace workspace;
  PayloadBuffers buffers;
  std::vector<float> result;
};

void run_rank(DeviceRank& rank, int index, const GroupOptions& options,
              const std::vector<float>& gradient, Transport& transport, ExchangeId id) {
  const DeviceMemory memory(testing::to_dtype(options.dtype, gradient));
  StagedCodec bucket(options.codecs(),
                     {memory.data(), options.dtype, reinterpret_cast<float*>(rank.residual.data()),
                      options.num_elements},
                     options.runs, options.factor, index, rank.workspace);
  testing::SlicedCodec codec(bucket, options.slice_elements);
  Measurements measurements;
  Exchange exchange(codec, transport, rank.buffers, measurements, id);
  schedule(options.schedule).run(exchange);
  rank.result = testing::to_floats(options.dtype, memory.to_host());
}

// Two steps; ranks for which is_on_device is true have their bucket there.
template <class IsOnDevice>
void check_group(const GroupOptions& options, IsOnDevice&& is_on_device) {
  Group expected(options);
  Group mixed(options);
  std::vector<std::unique_ptr<DeviceRank>> devices;
  for (int rank = 0; rank < options.world_size; ++rank) {
    devices.push_back(std::make_unique<DeviceRank>(options));
  }
  for (uint32_t step = 0; step < 2; ++step) {
    const auto gradients = testing::random_gradients(options, testing::Values::kNormal, step);
    expected.all_reduce(gradients);
    InProcessNetwork network(options.world_size);
    run_ranks(network, [&](int rank) {
      const auto transport = network.transport(rank);
      const auto& gradient = gradients[static_cast<size_t>(rank)];
      if (is_on_device(rank)) {
        run_rank(*devices[static_cast<size_t>(rank)], rank, options, gradient, *transport,
                 {step, 5});
      } else {
        mixed.run_rank(rank, gradient, *transport, {step, 5});
      }
    });
    for (int rank = 0; rank < options.world_size; ++rank) {
      CAPTURE(rank);
      const DeviceRank& device = *devices[static_cast<size_t>(rank)];
      const bool on_device = is_on_device(rank);
      REQUIRE(testing::same_bits(on_device ? device.result : mixed.rank(rank).result,
                                 expected.rank(rank).result));
      const auto residual = on_device
                                ? testing::to_floats(DType::kFloat32, device.residual.to_host())
                                : mixed.rank(rank).residual;
      REQUIRE(testing::same_bits(residual, expected.rank(rank).residual));
    }
  }
}

TEST_CASE("mixed groups, of devices and processors, have the results of processors alone") {
  GroupOptions options{.num_elements = 4321, .slice_elements = 1024};
  options.runs = {{3000, 0}, {21, 1}, {1300, 0}};
  testing::for_each_group(options, [&](const GroupOptions& group) {
    if (group.world_size > 3) return;
    check_group(group, [](int rank) { return rank % 2 == 1; });
  });
}

TEST_CASE("the same with a codec for each run") {
  GroupOptions options{.num_elements = testing::kMixedElements, .slice_elements = 2048};
  options.runs = testing::mixed_runs();
  options.other_codecs = testing::mixed_codecs();
  testing::for_each_group(options, [&](const GroupOptions& group) {
    if (group.world_size == 3) check_group(group, [](int rank) { return rank % 2 == 1; });
  });
}

TEST_CASE("groups of devices, in other precisions too") {
  for (const DType dtype : testing::kAllDTypes) {
    GroupOptions options{.num_elements = 2500, .dtype = dtype, .factor = 0.2f};
    testing::for_each_group(options, [&](const GroupOptions& group) {
      if (group.world_size == 5) check_group(group, [](int) { return true; });
    });
  }
}

}  // namespace
}  // namespace fastcomm
