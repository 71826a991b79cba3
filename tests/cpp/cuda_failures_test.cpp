// Payloads in device memory that are not what their label says.

#include <string>
#include <vector>

#include "device_buckets.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bucket;
using testing::Bytes;
using testing::DeviceMemory;
using testing::DeviceTwin;
using testing::DeviceWorkspace;
using testing::kDeviceLabel;
using testing::Values;

std::string failure_text(const DeviceWorkspace& workspace) {
  try {
    throw_if_failed(workspace.failure());
  } catch (const PayloadError& error) {
    return error.what();
  }
  return "none";
}

// A codec on a device, and a payload for it.
struct Setup {
  explicit Setup(const CodecSpec& codec, int64_t num_elements = 5000)
      : twin({codec}, testing::random_values(Values::kNormal, num_elements, 1),
             std::vector<float>(static_cast<size_t>(num_elements), 0.25f), 0, workspace.get()),
        payload(twin.encode(twin.whole(), {}, kDeviceLabel)) {}

  void decode(const Bytes& bytes, const MessageLabel& label = kDeviceLabel) {
    const DeviceMemory memory(bytes);
    const std::span<const std::byte> span = memory.span();
    twin.codec().decode(twin.whole(), {&span, 1}, {&label, 1});
  }
  std::vector<float> result() { return testing::to_floats(DType::kFloat32, twin.result()); }

  DeviceWorkspace workspace;
  DeviceTwin<StreamCodec> twin;
  Bytes payload;
};

TEST_CASE("any flipped bit is noticed, on large payloads and small ones") {
  for (const int64_t num_elements : {100, 300'000}) {
    Setup setup({"int8"}, num_elements);
    testing::Random random(3);
    for (int i = 0; i < 40; ++i) {
      DeviceWorkspace workspace;
      auto damaged = setup.payload;
      const auto byte = static_cast<size_t>(i < 32 ? i : random.below(int64_t(damaged.size())));
      damaged[byte] ^= static_cast<std::byte>(1 << random.below(8));
      DeviceTwin<StreamCodec> twin({{"int8"}}, std::vector<float>(size_t(num_elements)), {}, 0,
                                   workspace.get());
      const DeviceMemory memory(damaged);
      const std::span<const std::byte> span = memory.span();
      twin.codec().decode(twin.whole(), {&span, 1}, {&kDeviceLabel, 1});
      CAPTURE(byte);
      REQUIRE(failure_text(workspace) != "none");
    }
  }
}

TEST_CASE("the first difference is named, as on the CPU") {
  Setup damaged({"int8"});
  damaged.payload[200] ^= std::byte{4};
  damaged.decode(damaged.payload);
  CHECK(failure_text(damaged.workspace).find("it was damaged on the way") != std::string::npos);

  Setup late({"int8"});
  MessageLabel label = kDeviceLabel;
  label.step = 8;
  late.decode(late.payload, label);
  late.decode(Bytes(late.payload.size()));  // a second failure does not hide the first
  CHECK(failure_text(late.workspace).find("step 7, this rank expects 8") != std::string::npos);
}

TEST_CASE("after a failure nothing but NaN is decoded and encoded, and residuals stay") {
  for (const CodecSpec& codec : testing::tested_codecs()) {
    CAPTURE(codec.name);
    Setup setup(codec);
    auto damaged = setup.payload;
    damaged[100] ^= std::byte{1};
    setup.decode(damaged);
    for (const float value : setup.result()) REQUIRE(std::isnan(value));

    DeviceMemory encoded(int64_t(setup.payload.size()));
    setup.twin.codec().encode(setup.twin.whole(), {}, {}, encoded.span(), kDeviceLabel);
    setup.twin.check_residuals();
    Bucket receiver({codec}, std::vector<float>(5000), {});
    const auto received = receiver.decode(receiver.whole(), {encoded.to_host()}, kDeviceLabel);
    int64_t num_nan = 0;
    for (const float value : received) num_nan += std::isnan(value);
    CHECK(num_nan == (codec.name == "topk" ? topk_count(codec.density, 5000) : 5000));
  }
}

TEST_CASE("a payload of another size is an error at once") {
  Setup setup({"int8"});
  CHECK_THROWS_WITH_AS(setup.decode(Bytes(setup.payload.size() - 16)),
                       doctest::Contains("a payload has"), Error);
}

}  // namespace
}  // namespace fastcomm
