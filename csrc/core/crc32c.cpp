// CRC32C in three implementations: by table on any CPU, by the crc32 instruction of SSE4.2, and by
// folding with the carry-less multiplication of AVX-512 CPUs.
//
// Polynomials. A message is a polynomial over GF(2), its first bit the coefficient of the highest
// power of x, and its checksum is (message * x^32) mod P, but for the inversions at the start and
// at the end. CRC32C is bit-reflected: in a word of n bits, bit i is the coefficient of
// x^(n - 1 - i), so that words loaded from memory are parts of the polynomial as they are.
//
// Folding. Let a 128-bit block A of the message stand `distance` bits before a block B, the two
// adding A * x^distance + B to it. Only the remainder modulo P matters. Therefore, with the halves
// of A = first * x^64 + second,
//
//   first * (x^(distance + 64) mod P) + second * (x^distance mod P) + B
//
// may take the place of B, and A is gone: two carry-less multiplications of 64-bit words with
// constants, whose products (less than 96 bits) fit in a block. The message gets shorter by a block
// and keeps its checksum. What is left in the end is one block, whose checksum the crc32
// instruction computes. Method: Gopal et al., "Fast CRC computation for generic polynomials using
// PCLMULQDQ instruction", Intel, 2009.

#include "core/crc32c.h"

#include <array>
#include <cstring>

#include "core/crc32c_polynomial.h"
#include "core/isa.h"

#if FASTCOMM_X86
#include <immintrin.h>
#endif

namespace fastcomm {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::array<uint32_t, 256> make_byte_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t value = 0; value < 256; ++value) {
    uint32_t crc = value;
    for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
    table[value] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kByteTable = make_byte_table();

uint32_t crc32c_table(uint32_t initial, Bytes bytes) {
  uint32_t crc = ~initial;
  for (std::byte byte : bytes) {
    crc = (crc >> 8) ^ kByteTable[(crc ^ std::to_integer<uint32_t>(byte)) & 0xff];
  }
  return ~crc;
}

#if FASTCOMM_X86

#define FASTCOMM_TARGET_CRC32 __attribute__((target("sse4.2")))
#define FASTCOMM_TARGET_FOLDING \
  __attribute__((target("avx512f,avx512bw,avx512vl,vpclmulqdq,pclmul,sse4.2")))

// One crc32 instruction has a latency of three cycles, so three independent streams of kLane bytes
// keep the unit busy; their checksums are joined by "append kLane zero bytes", which is linear
// over GF(2) and therefore a table look-up per byte of the checksum.
constexpr size_t kLane = 1024;
using AppendTable = std::array<std::array<uint32_t, 256>, 4>;

constexpr AppendTable make_append_zeros_table(size_t num_zeros) {
  // Appending n zero bits multiplies by x^n; bit 31 of the checksum is 1, bit 30 is x, and so on.
  std::array<uint32_t, 32> of_bit{};
  uint32_t power = power_of_x(8 * num_zeros);
  for (int bit = 31; bit >= 0; --bit, power = times_x(power)) of_bit[bit] = power;
  AppendTable table{};
  for (int byte = 0; byte < 4; ++byte) {
    for (int value = 0; value < 256; ++value) {
      for (int bit = 0; bit < 8; ++bit) {
        if (value >> bit & 1) table[byte][value] ^= of_bit[byte * 8 + bit];
      }
    }
  }
  return table;
}

constexpr AppendTable kAppendLane = make_append_zeros_table(kLane);

uint32_t append_lane(uint32_t crc) {
  return kAppendLane[0][crc & 0xff] ^ kAppendLane[1][crc >> 8 & 0xff] ^
         kAppendLane[2][crc >> 16 & 0xff] ^ kAppendLane[3][crc >> 24];
}

inline uint64_t load_word(const std::byte* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// Appends `left` bytes to a checksum without its inversions, in one stream.
FASTCOMM_TARGET_CRC32 inline uint32_t append_bytes(uint64_t crc, const std::byte* next,
                                                   size_t left) {
  for (; left >= 8; next += 8, left -= 8) crc = _mm_crc32_u64(crc, load_word(next));
  for (; left > 0; ++next, --left) {
    crc = _mm_crc32_u8(static_cast<uint32_t>(crc), std::to_integer<uint8_t>(*next));
  }
  return static_cast<uint32_t>(crc);
}

FASTCOMM_TARGET_CRC32 uint32_t crc32c_instruction(uint32_t initial, Bytes bytes) {
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
    crc = append_lane(static_cast<uint32_t>(crc)) ^ second;
    crc = append_lane(static_cast<uint32_t>(crc)) ^ third;
    next += 3 * kLane;
    left -= 3 * kLane;
  }
  return ~append_bytes(crc, next, left);
}

// The constants that fold a block over `distance` bits.
struct FoldingPowers {
  explicit constexpr FoldingPowers(int distance)
      : for_first(word(distance + 64)), for_second(word(distance)) {}

  // x^exponent mod P as a 64-bit word. The product of two reflected words has 127 bits, and their
  // bit 0 is x^126, whereas bit 0 of a block is x^127: the product read as a block is one power of
  // x too high, which a constant one power lower makes up for.
  static constexpr int64_t word(int exponent) {
    return static_cast<int64_t>(uint64_t{power_of_x(exponent - 1)} << 32);
  }

  int64_t for_first;
  int64_t for_second;
};

constexpr size_t kRegister = sizeof(__m512i);  // bytes; four blocks side by side
constexpr size_t kStep = 4 * kRegister;        // four registers hide the latency of a fold
constexpr size_t kPrefetchAhead = 2048;        // bytes; about what memory takes to answer
constexpr FoldingPowers kOverStep(8 * kStep);
constexpr FoldingPowers kOverRegister(8 * kRegister);
constexpr FoldingPowers kOverBlock(8 * sizeof(__m128i));

FASTCOMM_TARGET_FOLDING inline __m512i load_register(const std::byte* bytes) {
  return _mm512_loadu_si512(bytes);
}

// The loop has too few loads in flight to read from memory as fast as it could.
FASTCOMM_TARGET_FOLDING inline void prefetch_step(const std::byte* bytes) {
  for (size_t i = 0; i < kStep; i += kRegister) _mm_prefetch(bytes + i, _MM_HINT_T0);
}

FASTCOMM_TARGET_FOLDING inline __m512i in_each_block(FoldingPowers powers) {
  return _mm512_set4_epi64(powers.for_second, powers.for_first, powers.for_second,
                           powers.for_first);
}

// Folds each block of `from` into the same block of `into`.
FASTCOMM_TARGET_FOLDING inline __m512i fold(__m512i from, __m512i into, __m512i powers) {
  const __m512i first = _mm512_clmulepi64_epi128(from, powers, 0x00);
  const __m512i second = _mm512_clmulepi64_epi128(from, powers, 0x11);
  return _mm512_ternarylogic_epi64(first, second, into, 0x96);  // the exclusive or of the three
}

FASTCOMM_TARGET_FOLDING inline __m128i fold_block(__m128i from, __m128i into) {
  const __m128i powers = _mm_set_epi64x(kOverBlock.for_second, kOverBlock.for_first);
  const __m128i first = _mm_clmulepi64_si128(from, powers, 0x00);
  const __m128i second = _mm_clmulepi64_si128(from, powers, 0x11);
  return _mm_ternarylogic_epi64(first, second, into, 0x96);
}

FASTCOMM_TARGET_FOLDING uint32_t crc32c_folding(uint32_t initial, Bytes bytes) {
  if (bytes.size() < kStep) return ~append_bytes(~initial, bytes.data(), bytes.size());
  const std::byte* next = bytes.data();
  size_t left = bytes.size();

  // A checksum that a message continues from is the same as one added to its first 32 bits.
  const __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~initial)));
  __m512i a = _mm512_xor_si512(load_register(next), start);
  __m512i b = load_register(next + kRegister);
  __m512i c = load_register(next + 2 * kRegister);
  __m512i d = load_register(next + 3 * kRegister);
  const __m512i over_step = in_each_block(kOverStep);
  for (next += kStep, left -= kStep; left >= kStep; next += kStep, left -= kStep) {
    if (left >= kPrefetchAhead + kStep) prefetch_step(next + kPrefetchAhead);
    a = fold(a, load_register(next), over_step);
    b = fold(b, load_register(next + kRegister), over_step);
    c = fold(c, load_register(next + 2 * kRegister), over_step);
    d = fold(d, load_register(next + 3 * kRegister), over_step);
  }

  const __m512i over_register = in_each_block(kOverRegister);
  __m512i last = fold(fold(fold(a, b, over_register), c, over_register), d, over_register);
  for (; left >= kRegister; next += kRegister, left -= kRegister) {
    last = fold(last, load_register(next), over_register);
  }

  // Through memory: the extracting intrinsics make GCC 12 warn of an uninitialized value.
  alignas(kRegister) __m128i blocks[4];
  _mm512_store_si512(blocks, last);
  const __m128i block =
      fold_block(fold_block(fold_block(blocks[0], blocks[1]), blocks[2]), blocks[3]);
  uint64_t crc = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(block)));
  crc = _mm_crc32_u64(crc, static_cast<uint64_t>(_mm_extract_epi64(block, 1)));
  return ~append_bytes(crc, next, left);
}

#endif

std::vector<Crc32cImplementation> detect() {
  std::vector<Crc32cImplementation> implementations{{"table", crc32c_table}};
#if FASTCOMM_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("sse4.2")) {
    implementations.push_back({"crc32 instruction", crc32c_instruction});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("vpclmulqdq") &&
        __builtin_cpu_supports("pclmul")) {
      implementations.push_back({"folding", crc32c_folding});
    }
  }
#endif
  return implementations;
}

}  // namespace

const std::vector<Crc32cImplementation>& crc32c_implementations() {
  static const std::vector<Crc32cImplementation> implementations = detect();
  return implementations;
}

uint32_t crc32c(uint32_t crc, Bytes bytes) {
  static const auto function = crc32c_implementations().back().function;
  return function(crc, bytes);
}

}  // namespace fastcomm
