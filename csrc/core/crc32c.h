#pragma once
// CRC32C (Castagnoli; RFC 3720, appendix B.4), the checksum of every payload.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace fastcomm {

// The checksum of `bytes`, continuing from the checksum `crc` of what came before (0: nothing).
uint32_t crc32c(uint32_t crc, std::span<const std::byte> bytes);

struct Crc32cImplementation {
  std::string_view name;
  uint32_t (*function)(uint32_t crc, std::span<const std::byte> bytes);
};

// What this host can run, from the slowest to the fastest, which is the one that crc32c() takes.
const std::vector<Crc32cImplementation>& crc32c_implementations();

}  // namespace fastcomm
