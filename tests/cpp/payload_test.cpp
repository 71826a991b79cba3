// The header: a payload that is not the expected message says why.

#include "codecs/payload.h"

#include <functional>
#include <string>
#include <vector>

#include "doctest.h"

namespace fastcomm {
namespace {

constexpr MessageLabel kLabel{.step = 7, .bucket = 3, .segment = 2, .slice = 11};
constexpr PayloadFormat kFormat{.codec_id = 8, .parameter = 512, .num_elements = 1000};

std::vector<std::byte> sealed(const MessageLabel& label = kLabel,
                              const PayloadFormat& format = kFormat) {
  std::vector<std::byte> payload(static_cast<size_t>(kHeaderBytes) + 100);
  for (size_t i = static_cast<size_t>(kHeaderBytes); i < payload.size(); ++i) {
    payload[i] = static_cast<std::byte>(i);
  }
  seal_payload(payload, label, format);
  return payload;
}

std::string refusal(std::span<const std::byte> payload) {
  try {
    check_payload(payload, kLabel, kFormat);
  } catch (const PayloadError& error) {
    return error.what();
  }
  return "accepted";
}

void check_refused(std::span<const std::byte> payload, const std::string& why) {
  const std::string message = refusal(payload);
  CAPTURE(message);
  CAPTURE(why);
  CHECK(message.find(why) != std::string::npos);
}

TEST_CASE("the payload that is expected is accepted") {
  const auto payload = sealed();
  CHECK(refusal(payload) == "accepted");
  CHECK(payload_num_elements(payload) == kFormat.num_elements);
}

TEST_CASE("a difference in any field of label or format names the field and both values") {
  auto label = kLabel;
  auto format = kFormat;
  std::string why;
  SUBCASE("step") { label.step = 8, why = "step 8, this rank expects 7"; }
  SUBCASE("bucket") { label.bucket = 4, why = "bucket 4, this rank expects 3"; }
  SUBCASE("segment") { label.segment = 0, why = "segment 0, this rank expects 2"; }
  SUBCASE("slice") { label.slice = 12, why = "slice 12, this rank expects 11"; }
  SUBCASE("codec") { format.codec_id = 4, why = "codec id 4, this rank expects 8"; }
  SUBCASE("parameter") {
    format.parameter = 256, why = "codec parameter 256, this rank expects 512";
  }
  SUBCASE("elements") {
    format.num_elements = 999, why = "number of elements 999, this rank expects 1000";
  }
  check_refused(sealed(label, format), why);
}

TEST_CASE("every label field counts in its full width") {
  MessageLabel label{.step = ~0u, .bucket = 0xffff, .segment = 0xffff, .slice = ~0u};
  PayloadFormat format{.codec_id = 0xff, .parameter = ~0u, .num_elements = ~0u};
  std::vector<std::byte> payload(static_cast<size_t>(kHeaderBytes));
  seal_payload(payload, label, format);
  CHECK_NOTHROW(check_payload(payload, label, format));
}

TEST_CASE("foreign bytes, another wire version and truncation are told apart") {
  auto payload = sealed();
  SUBCASE("magic number") {
    payload[0] ^= std::byte{1};
    check_refused(payload, "it is not a fastcomm payload");
  }
  SUBCASE("version") {
    payload[2] ^= std::byte{2};
    check_refused(payload, "wire version 3, this rank expects 1");
  }
  SUBCASE("shorter than said") {
    payload.pop_back();
    check_refused(payload, "size in bytes 132, this rank expects 131");
  }
  SUBCASE("longer than said") {
    payload.push_back(std::byte{0});
    check_refused(payload, "size in bytes");
  }
  SUBCASE("shorter than a header") {
    payload.resize(31);
    check_refused(payload, "has 31 bytes, less than its header of 32: it is truncated");
    CHECK_THROWS_AS(payload_num_elements(payload), PayloadError);
  }
  SUBCASE("empty") { check_refused({}, "it is truncated"); }
}

TEST_CASE("every single flipped bit is refused") {
  auto payload = sealed();
  for (size_t i = 0; i < payload.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      CAPTURE(i);
      CAPTURE(bit);
      const std::byte flip{static_cast<uint8_t>(1 << bit)};
      payload[i] ^= flip;
      REQUIRE(refusal(payload) != "accepted");
      payload[i] ^= flip;
    }
  }
  const auto body = static_cast<size_t>(kHeaderBytes);
  payload[body + 5] ^= std::byte{1};
  check_refused(payload, "it was damaged on the way");
}

TEST_CASE("an error names the place in the source") { check_refused({}, "payload.cpp:"); }

}  // namespace
}  // namespace fastcomm
