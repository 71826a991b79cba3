#pragma once
// CRC32C (Castagnoli; RFC 3720, appendix B.4), the checksum of every payload.

#include <cstddef>
#include <cstdint>
#include <span>

namespace fastcomm {

// The checksum of `bytes`, continuing from the checksum `crc` of what came before (0: nothing).
uint32_t crc32c(uint32_t crc, std::span<const std::byte> bytes);

// The same by table, on any CPU: the oracle of the tests.
uint32_t crc32c_portable(uint32_t crc, std::span<const std::byte> bytes);

}  // namespace fastcomm
