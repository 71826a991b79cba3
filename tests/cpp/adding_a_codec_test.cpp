// docs/adding_a_codec.md: a codec is one header and one line. This program is linked with the
// codecs compiled a second time, with int6.h as the line; no other code knows of int6.

#include <cmath>
#include <memory>
#include <string>

#include "codecs/bucket_codec.h"
#include "collectives/in_process_ranks.h"
#include "collectives/schedules.h"
#include "dense_sections.h"
#include "doctest.h"

namespace fastcomm {
namespace {

using testing::Bytes;
using testing::Values;

constexpr int64_t kBlock = 320;
// Around planes of 5 elements, tails, and blocks that are no power of two.
constexpr int64_t kSizes[] = {0, 1, 4, 5, 6, 7, 64, 319, 320, 321, 511, 640, 643, 961, 4103};
const CodecSpec kSpec{"int6"};

std::vector<float> sum_of(std::vector<float> a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// decoded + residual = value, in exact arithmetic; non-finite blocks are other tests' matter.
void check_conserved(const std::vector<float>& decoded, const std::vector<float>& residual,
                     const std::vector<float>& value) {
  REQUIRE(decoded.size() == value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    CAPTURE(i);
    REQUIRE(double{decoded[i]} + double{residual[i]} == double{value[i]});
  }
}

TEST_CASE("the codec is one of the dense formats") {
  const DenseFormat& format = dense_format("int6");
  CHECK(format.wire_id == 6);
  CHECK(format.block_elements == kBlock);
  CHECK(format.has_stochastic_rounding);  // from the math that it shares with int4 and int8
  // 64 words and one scale for each block; 5 elements of the tail are one word.
  CHECK(format.section_bytes(3 * kBlock) == 16 + 3 * 256);
  CHECK(format.section_bytes(5) == 16 + 16);
}

TEST_CASE("known answer: five planes of 6 bits in words of 32") {
  const std::vector<float> values{31, -31, 1, 0.5, 1.5, -2.5, -1};
  const auto section =
      testing::encode(dense_format("int6"), Isa::kBaseline, testing::inputs_of(values)).section;
  // Two units: element 2p is in plane p of the first, element 2p + 1 of the second.
  const int codes[2][5] = {{31, 1, 2, -1, 0}, {-31, 0, -2, 0, 0}};
  Bytes expected(32);
  expected[0] = std::byte{0x80};  // bf16 1.0
  expected[1] = std::byte{0x3f};
  for (size_t unit = 0; unit < 2; ++unit) {
    uint32_t word = 0;
    for (int plane = 0; plane < 5; ++plane) {
      word |= (static_cast<uint32_t>(codes[unit][plane]) & 0x3fu) << (6 * plane);
    }
    std::memcpy(&expected[16 + 4 * unit], &word, sizeof word);
  }
  CHECK(section == expected);
}

TEST_CASE("every instruction set writes the same bytes, and nothing is lost") {
  const DenseFormat& format = dense_format("int6");
  uint64_t seed = 0;
  for (const DType dtype : testing::kAllDTypes) {
    for (const Values kind : testing::kAllValues) {
      for (const int64_t n : kSizes) {
        CAPTURE(static_cast<int>(dtype));
        CAPTURE(static_cast<int>(kind));
        CAPTURE(n);
        seed += 10;
        const auto gradient = testing::rounded_to(dtype, testing::random_values(kind, n, seed));
        const auto other = testing::inputs_of(testing::random_values(kind, n, seed + 1));
        testing::EncodeInputs inputs{
            .dtype = dtype,
            .gradient = testing::to_dtype(dtype, gradient),
            .residual = testing::random_values(Values::kNormal, n, seed + 2),
            .received = {testing::encode(format, Isa::kBaseline, other).section},
            .num_elements = n};
        const auto expected = testing::encode(format, Isa::kBaseline, inputs);
        const testing::DecodeInputs sections{
            .sections = {expected.section, inputs.received[0]}, .num_elements = n, .dtype = dtype};
        const Bytes decoded = testing::decode_bytes(format, Isa::kBaseline, sections);
        for (const Isa isa : supported_isas()) {
          CAPTURE(isa_name(isa));
          const auto actual = testing::encode(format, isa, inputs, 1);  // in parts of one block
          REQUIRE(actual.section == expected.section);
          REQUIRE(testing::same_bits(actual.residual, expected.residual));
          REQUIRE(testing::decode_bytes(format, isa, sections, 1) == decoded);
        }
        REQUIRE(testing::all_finite(expected.residual));
        const auto value = sum_of(sum_of(gradient, inputs.residual),
                                  testing::decode_one(format, inputs.received[0], n));
        if (kind == Values::kNonFinite || kind == Values::kHuge || kind == Values::kWideRange) {
          continue;
        }
        check_conserved(testing::decode_one(format, expected.section, n), expected.residual, value);
      }
    }
  }
}

struct Bucket {
  explicit Bucket(int64_t num_elements, uint64_t seed = 1)
      : gradient(testing::random_values(Values::kNormal, num_elements, seed)),
        residual(testing::random_values(Values::kNormal, num_elements, seed + 1)) {}
  BucketMemory memory() {
    return {gradient.data(), DType::kFloat32, residual.data(),
            static_cast<int64_t>(gradient.size())};
  }
  std::vector<float> gradient, residual;
};

TEST_CASE("a ragged bucket with runs that are not compressed, and with threads") {
  // Enough for several tasks, which begin at blocks and end at no power of two.
  constexpr int64_t kNumElements = 200'003;
  const std::vector<Run> runs{{150'001, 0}, {64, 1}, {49'938, 0}};
  const MessageLabel label{.step = 1, .bucket = 2, .segment = 3, .slice = 4};
  std::vector<std::byte> payloads[2];
  std::vector<float> results[2];
  for (const int num_threads : {1, 3}) {
    Bucket bucket(kNumElements);
    const auto value = sum_of(bucket.gradient, bucket.residual);
    CodecWorkspace workspace;
    workspace.threads = std::make_shared<ThreadPool>(num_threads);
    BucketCodec codec({kSpec, {"fp32"}}, bucket.memory(), runs, 1, 0, workspace);
    auto& payload = payloads[num_threads / 2];
    payload.resize(static_cast<size_t>(codec.payload_bytes({0, kNumElements})));
    codec.encode({0, kNumElements}, {}, {}, payload, label);
    const std::span<const std::byte> received = payload;
    codec.decode({0, kNumElements}, {&received, 1}, {&label, 1});
    check_conserved(bucket.gradient, bucket.residual, value);
    results[num_threads / 2] = bucket.gradient;
  }
  CHECK(payloads[0] == payloads[1]);
  CHECK(testing::same_bits(results[0], results[1]));
}

TEST_CASE("slices and segments begin at blocks") {
  Bucket bucket(10'000'000);
  CodecWorkspace workspace;
  const BucketCodec codec({kSpec}, bucket.memory(), {}, 1, 0, workspace);
  CHECK(codec.shape().alignment == kBlock);
  CHECK(codec.shape().smallest_slice % kBlock == 0);
  for (const ElementRange segment : cut_segments(codec.shape(), 3)) {
    CHECK(segment.begin % kBlock == 0);
  }
}

TEST_CASE("three ranks in a ring: one result, and what it lacks is in the residuals") {
  constexpr int kWorldSize = 3;
  // Segments of several slices; the last one is ragged.
  constexpr int64_t kNumElements = 5'000'011;
  std::vector<Bucket> buckets;
  for (uint64_t rank = 0; rank < kWorldSize; ++rank) buckets.emplace_back(kNumElements, 10 * rank);
  const std::vector<Bucket> before = buckets;

  InProcessNetwork network(kWorldSize);
  run_ranks(network, [&](int rank) {
    CodecWorkspace workspace;
    PayloadBuffers buffers;
    Measurements measurements;
    const auto transport = network.transport(rank);
    BucketCodec codec({kSpec}, buckets[static_cast<size_t>(rank)].memory(), {}, 1, rank, workspace);
    Exchange exchange(codec, *transport, buffers, measurements, {0, 0});
    ring_all_reduce(exchange);
  });

  for (const Bucket& bucket : buckets) {
    CHECK(testing::same_bits(bucket.gradient, buckets[0].gradient));
  }
  double largest_error = 0;
  for (size_t i = 0; i < buckets[0].gradient.size(); ++i) {
    double missing = buckets[0].gradient[i];
    for (size_t rank = 0; rank < kWorldSize; ++rank) {
      missing += double{buckets[rank].residual[i]};
      missing -= double{before[rank].gradient[i]} + double{before[rank].residual[i]};
    }
    largest_error = std::max(largest_error, std::fabs(missing));
  }
  CHECK(largest_error < 1e-5);  // the f32 rounding of the sums
}

}  // namespace
}  // namespace fastcomm
