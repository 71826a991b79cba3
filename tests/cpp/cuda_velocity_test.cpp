// Momentum correction on a device has the bits of the one in host memory.

#include "codecs/cuda/velocity.h"
#include "codecs/velocity/velocity.h"
#include "device_buckets.h"
#include "doctest.h"
#include "mixed_codecs.h"

namespace fastcomm {
namespace {

using testing::BucketOptions;
using testing::Bytes;
using testing::DeviceMemory;
using testing::Values;

void check_correction(DType dtype, Values kind, int64_t num_elements, int64_t misalignment) {
  CAPTURE(static_cast<int>(dtype));
  CAPTURE(static_cast<int>(kind));
  CAPTURE(num_elements);
  CAPTURE(misalignment);
  for (const bool is_nesterov : {false, true}) {
    const Momentum momentum{0.9f, is_nesterov};
    const Values finite = kind == Values::kNonFinite ? Values::kNormal : kind;
    Bytes gradient = testing::to_dtype(dtype, testing::random_values(kind, num_elements, 1));
    auto velocity = testing::random_values(finite, num_elements, 2);
    auto residual = testing::random_values(finite, num_elements, 3);
    const int64_t float_offset = misalignment * int64_t{sizeof(float)};
    const DeviceMemory gradient_there(gradient,
                                      misalignment * static_cast<int64_t>(dtype_bytes(dtype)));
    const DeviceMemory velocity_there(testing::bytes_of(velocity), float_offset);
    const DeviceMemory residual_there(testing::bytes_of(residual), float_offset);
    enqueue_accumulate_velocity(
        {gradient_there.data(), dtype, reinterpret_cast<float*>(residual_there.data()),
         num_elements, reinterpret_cast<float*>(velocity_there.data())},
        momentum, nullptr);
    accumulate_velocity({gradient.data(), dtype, residual.data(), num_elements, velocity.data()},
                        momentum, nullptr);
    REQUIRE(gradient_there.to_host() == gradient);
    REQUIRE(velocity_there.to_host() == testing::bytes_of(velocity));
    REQUIRE(residual_there.to_host() == testing::bytes_of(residual));
  }
}

TEST_CASE("velocity, residual and gradient, for every dtype and kind of value") {
  for (const DType dtype : testing::kAllDTypes) {
    for (const Values kind : testing::kAllValues) {
      check_correction(dtype, kind, 5001, 0);
      check_correction(dtype, kind, 1000, 1);
    }
    for (const int64_t num_elements : {0, 1, 255, 257}) {
      check_correction(dtype, Values::kNormal, num_elements, 0);
    }
  }
}

template <class DeviceCodec>
void check_masking(const BucketOptions& options, Values kind, int64_t num_elements,
                   bool has_residual, int num_received) {
  CAPTURE(static_cast<int>(options.dtype));
  CAPTURE(static_cast<int>(kind));
  CAPTURE(num_elements);
  CAPTURE(has_residual);
  CAPTURE(num_received);
  const MessageLabel label{.step = 1, .bucket = 2, .segment = 3, .slice = 4};
  const auto values = [&](Values some, uint64_t seed) {
    return testing::rounded_to(options.dtype, testing::random_values(some, num_elements, seed));
  };
  std::vector<Bytes> received;
  for (int i = 0; i < num_received; ++i) {
    testing::Bucket sender(options, values(kind, 10 + static_cast<uint64_t>(i)), {});
    received.push_back(sender.encode(sender.whole(), {}, label));
  }
  testing::DeviceWorkspace workspace;
  const auto residual = has_residual ? values(Values::kNormal, 2) : std::vector<float>{};
  const auto velocity = testing::random_values(Values::kNormal, num_elements, 3);
  testing::DeviceTwin<DeviceCodec> twin(options, values(kind, 1), residual, 0, workspace.get(),
                                        velocity);
  // The twin compares the velocities, too.
  twin.encode(twin.whole(), received, label);
  twin.encode(twin.whole(), received, label);
}

TEST_CASE("the same velocities become zero, whatever way the selection takes") {
  for (const DType dtype : testing::kAllDTypes) {
    // Values that tie are misjudged by the sample.
    for (const Values kind : {Values::kNormal, Values::kAllEqual, Values::kNonFinite}) {
      for (const int num_received : {0, 2}) {
        const BucketOptions one{.codec = {"topk", 0.02}, .dtype = dtype};
        check_masking<StreamCodec>(one, kind, 70'000, true, num_received);
        check_masking<StreamCodec>(one, kind, 5000, false, num_received);
        BucketOptions mixed{.codec = {"topk", 0.03}, .dtype = dtype};
        mixed.runs = testing::mixed_runs();
        mixed.other_codecs = testing::mixed_codecs();
        check_masking<StreamCodec>(mixed, kind, testing::kMixedElements, true, num_received);
        check_masking<StagedCodec>(mixed, kind, testing::kMixedElements, true, num_received);
      }
    }
  }
}

}  // namespace
}  // namespace fastcomm
