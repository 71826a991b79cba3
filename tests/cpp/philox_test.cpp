// Philox4x32-10 against the known answers of Random123, by the authors of the generator.

#include "core/philox.h"

#include <array>
#include <set>

#include "doctest.h"

namespace fastcomm {
namespace {

using Words = std::array<uint32_t, 4>;

Words words_of(PhiloxWords counter, PhiloxKey key) {
  const PhiloxWords words = philox(counter, key);
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

TEST_CASE("known answers of Random123") {
  constexpr uint32_t kOnes = 0xffffffffu;
  CHECK(words_of({{0, 0, 0, 0}}, {{0, 0}}) ==
        Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  CHECK(words_of({{kOnes, kOnes, kOnes, kOnes}}, {{kOnes, kOnes}}) ==
        Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(words_of({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}},
                 {{0xa4093822u, 0x299f31d0u}}) ==
        Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST_CASE("every bit of counter and key changes all four words") {
  const Words usual = words_of({{1, 2, 3, 4}}, {{5, 6}});
  for (int bit = 0; bit < 6 * 32; ++bit) {
    PhiloxWords counter{{1, 2, 3, 4}};
    PhiloxKey key{{5, 6}};
    uint32_t& word = bit < 128 ? counter.word[bit / 32] : key.word[bit / 32 - 4];
    word ^= 1u << (bit % 32);
    const Words changed = words_of(counter, key);
    CAPTURE(bit);
    for (size_t i = 0; i < 4; ++i) CHECK(changed[i] != usual[i]);
  }
}

TEST_CASE("counters that follow one another give words without repetition") {
  std::set<uint32_t> words;
  for (uint32_t i = 0; i < 1000; ++i) {
    for (const uint32_t word : words_of({{i, 0, 0, 0}}, {{0, 0}})) words.insert(word);
  }
  CHECK(words.size() >= 3998);  // 4000 words of 32 bits: 0.002 repetitions are to be expected
}

}  // namespace
}  // namespace fastcomm
