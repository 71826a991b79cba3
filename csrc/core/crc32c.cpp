#include "core/crc32c.h"

#include <array>
#include <cstring>

#include "core/isa.h"

#if FASTCOMM_X86
#include <nmmintrin.h>
#endif

namespace fastcomm {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78u;  // reflected Castagnoli polynomial
using Table = std::array<std::array<uint32_t, 256>, 4>;

constexpr std::array<uint32_t, 256> make_byte_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t value = 0; value < 256; ++value) {
    uint32_t crc = value;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[value] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kByteTable = make_byte_table();

#if FASTCOMM_X86

// One crc32 instruction has a latency of three cycles, so three independent streams of kLane bytes
// keep the unit busy; their checksums are joined by "append kLane zero bytes", which is linear
// over GF(2) and therefore a table look-up per byte of the checksum.
constexpr size_t kLane = 1024;

Table make_append_zeros_table(size_t num_zeros) {
  std::array<uint32_t, 32> of_bit{};
  for (int bit = 0; bit < 32; ++bit) {
    uint32_t crc = uint32_t{1} << bit;
    for (size_t i = 0; i < num_zeros; ++i) crc = (crc >> 8) ^ kByteTable[crc & 0xff];
    of_bit[bit] = crc;
  }
  Table table{};
  for (int byte = 0; byte < 4; ++byte) {
    for (int value = 0; value < 256; ++value) {
      for (int bit = 0; bit < 8; ++bit) {
        if (value >> bit & 1) table[byte][value] ^= of_bit[byte * 8 + bit];
      }
    }
  }
  return table;
}

uint32_t append_zeros(const Table& table, uint32_t crc) {
  return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^
         table[3][crc >> 24];
}

inline uint64_t load_word(const std::byte* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(uint32_t initial,
                                                        std::span<const std::byte> bytes) {
  static const Table kAppendLane = make_append_zeros_table(kLane);
  const std::byte* next = bytes.data();
  size_t left = bytes.size();
  uint64_t crc = ~initial;
  while (left >= 3 * kLane) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (size_t i = 0; i < kLane; i += 8) {
      crc = _mm_crc32_u64(crc, load_word(next + i));
      second = _mm_crc32_u64(second, load_word(next + kLane + i));
      third = _mm_crc32_u64(third, load_word(next + 2 * kLane + i));
    }
    crc = append_zeros(kAppendLane, static_cast<uint32_t>(crc)) ^ second;
    crc = append_zeros(kAppendLane, static_cast<uint32_t>(crc)) ^ third;
    next += 3 * kLane;
    left -= 3 * kLane;
  }
  for (; left >= 8; next += 8, left -= 8) crc = _mm_crc32_u64(crc, load_word(next));
  for (; left > 0; ++next, --left) {
    crc = _mm_crc32_u8(static_cast<uint32_t>(crc), std::to_integer<uint8_t>(*next));
  }
  return ~static_cast<uint32_t>(crc);
}

#endif

}  // namespace

uint32_t crc32c_portable(uint32_t crc, std::span<const std::byte> bytes) {
  crc = ~crc;
  for (std::byte byte : bytes) {
    crc = (crc >> 8) ^ kByteTable[(crc ^ std::to_integer<uint32_t>(byte)) & 0xff];
  }
  return ~crc;
}

uint32_t crc32c(uint32_t crc, std::span<const std::byte> bytes) {
#if FASTCOMM_X86
  static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
  if (has_sse42) return crc32c_sse42(crc, bytes);
#endif
  return crc32c_portable(crc, bytes);
}

}  // namespace fastcomm
