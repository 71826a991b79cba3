// The top-k codec on a GPU writes the CPU's bytes.

#include "cuda_topk.h"

#include "codecs/cuda/topk_sample.cuh"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::add_received;
using testing::Bytes;
using testing::check_against_cpu;
using testing::inputs_of;
using testing::kInfinity;
using testing::kNaN;
using testing::random_values;
using testing::TopKInputs;
using testing::TopKOutputs;
using testing::Values;

TEST_CASE("sizes and densities, one workspace for all") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  for (const int64_t n : {1, 5, 511, 4096, 65'536, 65'537, 200'001, 0, 8192, 131'072}) {
    for (const double density : {0.0, 0.001, 0.01, 0.1}) {
      if (n > 100'000 && density > 0.01) continue;
      check_against_cpu(workspace, inputs_of(Values::kNormal, n, topk_count(density, n)));
    }
  }
}

TEST_CASE("a quarter of the elements and all of them") {
  for (const int64_t n : {1, 300, 10'000}) {
    for (const int64_t k : {n, (n + 3) / 4}) {
      check_against_cpu(inputs_of(Values::kNormal, n, k));
      check_against_cpu(inputs_of(Values::kMostlyZero, n, k));
    }
  }
}

TEST_CASE("dtypes, with and without residual, aligned and not, with what was received") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  for (const DType dtype : testing::kAllDTypes) {
    for (const bool has_residual : {true, false}) {
      for (const int num_received : {0, 1, 3}) {
        for (const size_t slack : {size_t{0}, size_t{1}, size_t{2}, size_t{3}}) {
          TopKInputs inputs = inputs_of(Values::kNormal, 12'288, 123, slack);
          inputs.dtype = dtype;
          inputs.misalignment = slack;
          if (!has_residual) inputs.residual.clear();
          add_received(inputs, num_received);
          check_against_cpu(workspace, inputs);
        }
      }
    }
  }
}

TEST_CASE("pieces of all sizes") {
  for (const DType dtype : testing::kAllDTypes) {
    TopKInputs inputs = inputs_of(Values::kNormal, 70'003, 700);
    inputs.dtype = dtype;
    inputs.cuts = {1, 2, 2, 5, 4096, 4097, 8192, 12'288, 30'001, 30'300, 65'537, 70'002, 70'003};
    check_against_cpu(inputs);
    add_received(inputs, 2);
    check_against_cpu(inputs);
    inputs.residual.clear();
    check_against_cpu(inputs);
  }
}

TEST_CASE("many tiny pieces") {
  TopKInputs inputs = inputs_of(Values::kNormal, 9'000, 90);
  for (int64_t cut = 3; cut < 9'000; cut += 1 + cut % 7) inputs.cuts.push_back(cut);
  check_against_cpu(inputs);
}

TEST_CASE("kinds of values, received ones too") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  for (const Values kind : testing::kAllValues) {
    CAPTURE(static_cast<int>(kind));
    for (const DType dtype : testing::kAllDTypes) {
      TopKInputs inputs = inputs_of(kind, 20'000, 200);
      inputs.dtype = dtype;
      check_against_cpu(workspace, inputs);
      inputs.residual.clear();
      check_against_cpu(workspace, inputs);
    }
    TopKInputs inputs = inputs_of(kind, 67'000, 670);
    inputs.residual = random_values(kind, 67'000, 77);
    check_against_cpu(workspace, inputs);
    add_received(inputs, 3, kind);
    check_against_cpu(workspace, inputs);
  }
}

TEST_CASE("all zeros, and fewer values than entries") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  for (const int64_t n : {100, 30'000}) {
    TopKInputs inputs = inputs_of(Values::kNormal, n, n / 20);
    inputs.gradient.assign(static_cast<size_t>(n), -0.0f);
    inputs.residual = inputs.gradient;
    check_against_cpu(workspace, inputs);
    inputs.gradient[7] = 1;
    inputs.gradient[static_cast<size_t>(n) - 1] = -2;
    check_against_cpu(workspace, inputs);
  }
}

TEST_CASE("more ties than there is room for") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  TopKInputs inputs = inputs_of(Values::kAllEqual, 150'000, 1500);
  inputs.residual.assign(150'000, 0.0f);
  check_against_cpu(workspace, inputs);
  // More close calls than are listed, but no more candidates than there is room for.
  inputs.gradient.assign(150'000, 0.0f);
  for (size_t i = 0; i < 150'000; i += 2) inputs.gradient[i] = i % 1024 == 0 ? 3.0f : 1.0f;
  inputs.k = 37'000;
  check_against_cpu(workspace, inputs);
}

TEST_CASE("values that vanish, where the candidates do not fit") {
  TopKInputs inputs = inputs_of(Values::kAllEqual, 60'000, 600);
  inputs.residual.assign(60'000, 1.5f);
  for (size_t i = 0; i < 60'000; i += 3) inputs.residual[i] = -inputs.gradient[i];
  check_against_cpu(inputs);
}

TEST_CASE("large values in clusters, which the sample misjudges") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  for (const int64_t first : {0, 1000, 60'000, 99'000}) {
    for (const int64_t count : {100, 600, 990, 1000}) {
      TopKInputs inputs = inputs_of(Values::kTiny, 100'000, 990);
      inputs.residual.assign(100'000, 0.0f);
      for (int64_t i = first; i < first + count; ++i) {
        inputs.gradient[static_cast<size_t>(i)] = 1.0f + static_cast<float>(i % 300);
      }
      check_against_cpu(workspace, inputs);
    }
  }
}

TEST_CASE("fewer candidates than entries: only what is sampled is large") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  constexpr int64_t kElements = 33'000;
  const auto sample = cuda_topk::plan_sample(300, kElements);
  for (const float large : {3.0f, kInfinity, kNaN}) {
    for (const bool has_infinities : {false, true}) {
      TopKInputs inputs = inputs_of(Values::kHalves, kElements, 300);
      for (float& value : inputs.gradient) value *= 0x1p-10f;
      for (size_t i = 3; has_infinities && i < inputs.gradient.size(); i += 1000) {
        inputs.gradient[i] = -kInfinity;
      }
      for (int64_t i = 0; i < sample.num_wanted; ++i) {
        const int64_t index = cuda_topk::sampled_index(sample.stride, i);
        inputs.gradient[static_cast<size_t>(index)] = large;
      }
      inputs.residual.assign(inputs.gradient.size(), 0.0f);
      check_against_cpu(workspace, inputs);
      inputs.residual.clear();
      check_against_cpu(workspace, inputs);
    }
  }
}

TEST_CASE("NaN and Inf, few, many and everywhere") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  for (const size_t step : {20'000, 64, 1}) {
    for (const bool is_mixed : {false, true}) {
      TopKInputs inputs = inputs_of(Values::kNormal, 33'000, 330);
      for (size_t i = 5; i < inputs.gradient.size(); i += step) {
        const float kinds[] = {kNaN, kInfinity, -kInfinity, std::copysign(kNaN, -1.0f)};
        inputs.gradient[i] = is_mixed ? kinds[i / step % 4] : kInfinity;
      }
      check_against_cpu(workspace, inputs);
      add_received(inputs, 2, Values::kNonFinite);
      check_against_cpu(workspace, inputs);
      inputs.residual.clear();
      check_against_cpu(workspace, inputs);
    }
  }
}

TEST_CASE("no section and many sections decode to their sum") {
  for (const int num_received : {-1, 69}) {
    TopKInputs inputs = inputs_of(Values::kNormal, 9'001, 500);
    add_received(inputs, num_received);
    const testing::TopKMemory<testing::HostMemory> on_cpu(inputs);
    TopKDecoder().decode({active_isa(), nullptr}, inputs.dtype, on_cpu.out_pieces, inputs.k, -0.5f,
                         on_cpu.received);
    const testing::TopKMemory<testing::DeviceMemory> on_device(inputs);
    CudaWorkspace workspace;
    workspace.allocate = testing::allocate_device;
    workspace.topk.decode(workspace, inputs.dtype, on_device.out_pieces, inputs.k, -0.5f,
                          on_device.received);
    CHECK(on_device.outputs().decoded == on_cpu.outputs().decoded);
  }
}

TEST_CASE("all NaNs are one, whatever their sign and digits") {
  TopKInputs inputs = inputs_of(Values::kNormal, 30'000, 30);
  for (size_t i = 0; i < 50; ++i) {
    const auto digits = static_cast<uint32_t>(0x7fc00000u + (i * 7919) % 4096);
    inputs.gradient[i * 500] = bits_float(digits | (i % 2 == 0 ? 0x80000000u : 0u));
  }
  check_against_cpu(inputs);
}

TEST_CASE("sums that overflow") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  TopKInputs inputs = inputs_of(Values::kNormal, 20'000, 200);
  for (size_t i = 0; i < 20'000; i += 777) {
    inputs.gradient[i] = 3e38f;
    inputs.residual[i] = i % 2 == 0 ? 3e38f : -1e38f;
  }
  check_against_cpu(workspace, inputs);
  auto huge = random_values(Values::kNormal, 20'000, 3);
  for (size_t i = 0; i < 20'000; i += 259) huge[i] = 3e38f;
  inputs.received = {testing::section_of(huge, 200), testing::section_of(huge, 200)};
  check_against_cpu(workspace, inputs);
  inputs.residual.clear();
  check_against_cpu(workspace, inputs);
}

TEST_CASE("calls of different sizes one after another do not disturb each other") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  const Values kinds[] = {Values::kNormal, Values::kAllEqual, Values::kNonFinite};
  for (uint64_t i = 0; i < 12; ++i) {
    const int64_t n = i % 2 == 0 ? 40'000 : 1'000 + 9'000 * static_cast<int64_t>(i);
    TopKInputs inputs = inputs_of(kinds[i % 3], n, n / 50, i);
    if (i % 4 > 1) add_received(inputs, static_cast<int>(i % 4), kinds[i / 3 % 3]);
    check_against_cpu(workspace, inputs);
  }
}

TEST_CASE("after a failure there is nothing but NaN, and residuals stay as they are") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  const Bytes set(16, std::byte{7});
  const testing::DeviceMemory failed(set);
  for (const int64_t n : {1'000, 70'001}) {
    for (const int num_received : {0, 2}) {
      TopKInputs inputs = inputs_of(Values::kNormal, n, n / 100);
      add_received(inputs, num_received);
      workspace.failed = reinterpret_cast<uint32_t*>(failed.data());
      const TopKOutputs outputs = testing::run_on_device(workspace, inputs);
      workspace.failed = nullptr;
      TopKInputs all_nan = inputs;
      all_nan.gradient.assign(static_cast<size_t>(n), kNaN);
      const TopKOutputs expected = testing::run_on_cpu(all_nan);
      CHECK(outputs.section == expected.section);
      CHECK(testing::same_bits(outputs.residual, inputs.residual));
      CHECK(outputs.decoded == testing::to_dtype(DType::kFloat32, all_nan.gradient));
      check_against_cpu(workspace, inputs);
    }
  }
}

TEST_CASE("malformed sections lead nowhere out of bounds") {
  CudaWorkspace workspace;
  workspace.allocate = testing::allocate_device;
  TopKInputs inputs = inputs_of(Values::kNormal, 70'000, 700);
  add_received(inputs, 2);
  testing::Random random(9);
  for (int i = 0; i < 6; ++i) {
    for (Bytes& section : inputs.received) {
      // All of it, or the counts (8 bytes) alone, or all but those.
      const size_t begin = i % 3 == 2 ? 16 : 0;
      const size_t end = i % 3 == 1 ? 8 : section.size();
      for (size_t byte = begin; byte < end; ++byte) {
        section[byte] = static_cast<std::byte>(random.next());
      }
    }
    testing::run_on_device(workspace, inputs);
  }
  inputs.received.clear();
  check_against_cpu(workspace, inputs);
}

}  // namespace
}  // namespace fastcomm
