#include "core/crc32c.h"

#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest.h"
#include "values.h"

namespace fastcomm {
namespace {

using Bytes = std::span<const std::byte>;

// The oracle: CRC32C by its definition, a bit at a time. Continues from `crc` like crc32c().
uint32_t crc32c_bitwise(uint32_t crc, Bytes bytes) {
  crc = ~crc;
  for (std::byte byte : bytes) {
    crc ^= std::to_integer<uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0);
  }
  return ~crc;
}

Bytes as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

std::vector<std::byte> random_bytes(uint64_t seed, size_t size) {
  testing::Random random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}

// The implementations of this host, and what chooses among them.
std::vector<Crc32cImplementation> all_implementations() {
  std::vector<Crc32cImplementation> all = crc32c_implementations();
  all.push_back({"crc32c()", crc32c});
  return all;
}

TEST_CASE("crc32c gives the published check values") {
  // RFC 3720, appendix B.4.
  const std::vector<std::byte> zeros(32);
  const std::vector<std::byte> ones(32, std::byte{0xff});
  std::vector<std::byte> ascending;
  for (int value = 0; value < 32; ++value) ascending.push_back(static_cast<std::byte>(value));
  const std::vector<std::byte> descending(ascending.rbegin(), ascending.rend());
  std::vector<std::byte> read_command(48);  // an iSCSI SCSI Read (10) command PDU
  const std::pair<size_t, int> set_bytes[] = {{0, 0x01},  {1, 0xc0},  {16, 0x14}, {22, 0x04},
                                              {27, 0x14}, {31, 0x18}, {32, 0x28}, {40, 0x02}};
  for (const auto& [index, value] : set_bytes) read_command[index] = static_cast<std::byte>(value);

  std::vector<Crc32cImplementation> implementations = all_implementations();
  implementations.push_back({"the oracle", crc32c_bitwise});
  for (const auto& [name, function] : implementations) {
    CAPTURE(name);
    CHECK(function(0, zeros) == 0x8a9136aau);
    CHECK(function(0, ones) == 0x62a8ab43u);
    CHECK(function(0, ascending) == 0x46dd794eu);
    CHECK(function(0, descending) == 0x113fdb5cu);
    CHECK(function(0, read_command) == 0xd9963a56u);
    CHECK(function(0, as_bytes("123456789")) == 0xe3069283u);  // of the CRC catalogue
    CHECK(function(0, {}) == 0);
    CHECK(function(0x12345678, {}) == 0x12345678);
  }
}

TEST_CASE("every implementation equals the oracle at every short length and alignment") {
  constexpr size_t kMaxLength = 1100;  // several steps of 256 bytes and each possible rest
  const std::vector<std::byte> bytes = random_bytes(7, kMaxLength + 64);
  testing::Random random(8);
  const std::vector<Crc32cImplementation> implementations = all_implementations();
  for (size_t first = 0; first < 64; ++first) {
    const auto start = first == 0 ? 0 : static_cast<uint32_t>(random.next());
    uint32_t expected = start;
    for (size_t length = 0; length <= kMaxLength; ++length) {
      const Bytes part = Bytes(bytes).subspan(first, length);
      if (length > 0) expected = crc32c_bitwise(expected, part.last(1));
      for (const auto& [name, function] : implementations) {
        // Not a REQUIRE each: there are a quarter of a million of them.
        if (function(start, part) == expected) continue;
        FAIL(name, " differs at first = ", first, ", length = ", length);
      }
    }
  }
}

TEST_CASE("every implementation equals the oracle at long lengths") {
  const std::vector<std::byte> bytes = random_bytes(9, 40'000);
  testing::Random random(10);
  for (int i = 0; i < 200; ++i) {
    const auto first = static_cast<size_t>(random.below(64));
    // Around the multiples of the three interleaved streams too.
    const size_t length = i % 2 == 0
                              ? static_cast<size_t>(random.below(39'000))
                              : static_cast<size_t>(3072 * random.below(12) + random.below(20));
    const auto start = static_cast<uint32_t>(random.next());
    CAPTURE(first);
    CAPTURE(length);
    const Bytes part = Bytes(bytes).subspan(first, length);
    const uint32_t expected = crc32c_bitwise(start, part);
    for (const auto& [name, function] : all_implementations()) {
      CAPTURE(name);
      REQUIRE(function(start, part) == expected);
    }
  }
}

TEST_CASE("every implementation continues from the checksum of what came before") {
  const std::vector<std::byte> bytes = random_bytes(11, 700);
  const uint32_t expected = crc32c_bitwise(0, bytes);
  for (const auto& [name, function] : all_implementations()) {
    CAPTURE(name);
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      CAPTURE(cut);
      const uint32_t crc = function(0, Bytes(bytes).first(cut));
      CHECK(function(crc, Bytes(bytes).subspan(cut)) == expected);
    }
  }
}

}  // namespace
}  // namespace fastcomm
