#include "core/crc32c.h"

#include <string_view>

#include "doctest.h"
#include "values.h"

namespace fastcomm {
namespace {

std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST_CASE("crc32c gives the published check values") {
  CHECK(crc32c(0, as_bytes("123456789")) == 0xe3069283u);
  CHECK(crc32c_portable(0, as_bytes("123456789")) == 0xe3069283u);
  // RFC 3720, appendix B.4.
  const std::vector<std::byte> zeros(32);
  const std::vector<std::byte> ones(32, std::byte{0xff});
  CHECK(crc32c(0, zeros) == 0x8a9136aau);
  CHECK(crc32c(0, ones) == 0x62a8ab43u);
  CHECK(crc32c(0, {}) == 0);
}

TEST_CASE("crc32c equals the portable one at any length, alignment and start") {
  testing::Random random(7);
  std::vector<std::byte> bytes(40'000);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  for (int i = 0; i < 1000; ++i) {
    const auto first = static_cast<size_t>(random.below(64));
    // Around the multiples of the three interleaved streams too.
    const size_t length = i % 2 == 0
                              ? static_cast<size_t>(random.below(39'000))
                              : static_cast<size_t>(3072 * random.below(12) + random.below(20));
    const auto start = static_cast<uint32_t>(random.next());
    CAPTURE(first);
    CAPTURE(length);
    const auto part = std::span<const std::byte>(bytes).subspan(first, length);
    REQUIRE(crc32c(start, part) == crc32c_portable(start, part));
  }
}

TEST_CASE("crc32c continues from the checksum of what came before") {
  const auto text = as_bytes("gradients are summed, nothing is lost");
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    CHECK(crc32c(crc32c(0, text.first(cut)), text.subspan(cut)) == crc32c(0, text));
  }
}

}  // namespace
}  // namespace fastcomm
