// What the loops of every instruction set need. No include guard: a source file includes
// core/loops_<isa>.h first, which defines
//   FASTCOMM_LOOPS_NAMESPACE     the namespace of the instruction set
//   FASTCOMM_LOOPS_TARGET        its function attribute
//   FASTCOMM_LOOPS_LANES         the number of floats in its vector registers
//   FASTCOMM_LOOPS_STREAM(to, vector), FASTCOMM_LOOPS_STREAM_END()
//                                a store past the cache, and what comes after the last one
// and then, once, the loops, which include this file.

#include <cstdint>
#include <cstring>

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

#define FASTCOMM_INLINE_LOOP FASTCOMM_LOOPS_TARGET inline __attribute__((always_inline))

// How far ahead loops fetch, in elements. From 512 to 2048 were measured; multiples of 512 are 0.05
// slower.
constexpr int kPrefetchDistance = 800;

// Larger results are written past the cache: they are not used soon, and their lines need not be
// read before they are written. Smaller ones stay there for whoever needs them next.
constexpr size_t kSmallestStreamedBytes = size_t{1} << 19;

// Brings memory that will be needed soon into the cache. It may end anywhere: prefetching what is
// not there does nothing.
template <bool kWillWrite, class Element>
FASTCOMM_INLINE_LOOP void prefetch(const Element* memory, int num_elements) {
  constexpr int kElementsPerLine = 64 / static_cast<int>(sizeof(Element));
#pragma GCC unroll 4
  for (int i = 0; i < num_elements; i += kElementsPerLine) {
    __builtin_prefetch(memory + i, kWillWrite, 3);
  }
}

// Writes to memory past the cache, which need not read the lines first. For results that are not
// used soon. `values` is aligned to a cache line.
template <class Element>
FASTCOMM_INLINE_LOOP void stream(const Element* values, Element* out, int num_elements) {
  constexpr int kElementsPerVector = 4 * FASTCOMM_LOOPS_LANES / static_cast<int>(sizeof(Element));
  const auto misalignment = reinterpret_cast<uintptr_t>(out) % sizeof(StreamVector);
  int i = 0;
  if (misalignment != 0) {
    const auto head = static_cast<int>((sizeof(StreamVector) - misalignment) / sizeof(Element));
    i = head < num_elements ? head : num_elements;
    std::memcpy(out, values, static_cast<size_t>(i) * sizeof(Element));
  }
  for (; i + kElementsPerVector <= num_elements; i += kElementsPerVector) {
    StreamVector vector;
    std::memcpy(&vector, values + i, sizeof vector);
    FASTCOMM_LOOPS_STREAM(out + i, vector);
  }
  std::memcpy(out + i, values + i, static_cast<size_t>(num_elements - i) * sizeof(Element));
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
