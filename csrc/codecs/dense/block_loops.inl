// The block loops (sections.inl) of encoding, for one instruction set; included by loops.inl.
//
// Encoding runs two loops per block. The first accumulates gradient + residual + received into a
// stash that stays in the L1 cache and finds the block's statistic; the second quantizes the stash
// and writes codes and residual. Memory is read and written once. The second loop, which reads
// nothing from memory, prefetches what the next blocks need: without that the memory would idle
// meanwhile (int8 encode: 0.95 instead of 0.75 of the byte rate of b += a).
//
// The residual is only written by the second loop, so that a block that turns out to be
// non-finite leaves its previous residual untouched.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

// stash = gradient + residual, rotated if the codec is; returns the largest magnitude as bits, if
// it is asked for.
template <int kElements, bool kFindsLargest, bool kIsRotated, class Element, bool kHasResidual>
FASTCOMM_BLOCK_LOOP uint32_t accumulate(const void* gradient_elements,
                                        const float* __restrict__ residual,
                                        const RotationSigns* signs, float* __restrict__ stash) {
  const Element* __restrict__ gradient = static_cast<const Element*>(gradient_elements);
  uint32_t largest = 0;
  for (int i = 0; i < kElements; ++i) {
    float value = to_float(gradient[i]);
    if constexpr (kHasResidual) value += residual[i];
    stash[i] = value;
    if constexpr (kFindsLargest) largest = larger(largest, magnitude_bits(value));
  }
  if constexpr (kIsRotated) rotate(stash, signs);
  return largest;
}

// stash = gradient + residual + decode(codes); returns the largest magnitude as bits.
template <class C, class Element, bool kHasResidual>
FASTCOMM_BLOCK_LOOP uint32_t accumulate_received(const void* gradient_elements,
                                                 const float* __restrict__ residual,
                                                 const typename C::Unit* __restrict__ codes,
                                                 uint16_t wire_scale, float* __restrict__ stash) {
  constexpr int kUnits = kBlockUnits<C>;
  const Element* __restrict__ gradient = static_cast<const Element*>(gradient_elements);
  const BlockScale incoming = block_scale<C>(wire_scale);
  uint32_t largest = 0;
  for (int plane = 0; plane < C::kElementsPerUnit; ++plane) {
    const int first = plane * kUnits;
    for (int unit = 0; unit < kUnits; ++unit) {
      float value = to_float(gradient[first + unit]);
      if constexpr (kHasResidual) value += residual[first + unit];
      value += C::dequantize(code_in<C>(codes[unit], plane), incoming);
      stash[first + unit] = value;
      largest = larger(largest, magnitude_bits(value));
    }
  }
  return largest;
}

template <int kElements>
FASTCOMM_BLOCK_LOOP uint32_t largest_magnitude(const float* __restrict__ stash) {
  uint32_t largest = 0;
  for (int i = 0; i < kElements; ++i) largest = larger(largest, magnitude_bits(stash[i]));
  return largest;
}

// Of the first `count` elements; the others are zero. Summed in 64 lanes and then pairwise, on
// every instruction set: sums depend on their order.
template <int kElements>
FASTCOMM_INLINE_LOOP float mean_magnitude(const float* __restrict__ stash, int count) {
  constexpr int kSums = 64;
  float sums[kSums] = {};
  for (int first = 0; first < kElements; first += kSums) {
    for (int i = 0; i < kSums; ++i) sums[i] += bits_float(magnitude_bits(stash[first + i]));
  }
  for (int distance = kSums / 2; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  return sums[0] / static_cast<float>(count);
}

// A random word for each element of a block: element i has word i / q of the counter f + i % q,
// where q is a quarter of the block and f the index in the bucket of the block's first element.
template <int kElements>
FASTCOMM_BLOCK_LOOP void make_noise(const RoundingNoise& noise, int64_t first_element,
                                    uint32_t* __restrict__ words) {
  constexpr int kQuarter = kElements / 4;
  const auto element = static_cast<uint64_t>(noise.first_element + first_element);
  for (int i = 0; i < kQuarter; ++i) {
    const uint64_t counter = element + static_cast<uint64_t>(i);
    const PhiloxWords random =
        philox({{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), noise.step,
                 noise.bucket}},
               {{noise.seed, noise.rank}});
    for (int word = 0; word < 4; ++word) words[word * kQuarter + i] = random.word[word];
  }
}

// The gradient of a block, for what is fetched ahead.
struct BlockGradient {
  const std::byte* elements;
  int element_bytes;
};

// Quantizes the stash to codes. What is left out goes to the residual: rotated back if the codec is
// rotated. Without a scale (kIsFinite false), finiteness is a matter of each element.
// `fetches_codes`: the memory of the next blocks' codes is worth to be fetched, too.
template <class C, bool kHasResidual, bool kIsFinite, bool kIsStochastic>
FASTCOMM_BLOCK_LOOP void quantize(float* __restrict__ stash, BlockScale scale,
                                  const uint32_t* __restrict__ noise, float* __restrict__ residual,
                                  typename C::Unit* __restrict__ codes, BlockGradient gradient,
                                  bool fetches_codes, const RotationSigns* signs) {
  constexpr int kPlanes = C::kElementsPerUnit;
  constexpr int kUnits = kBlockUnits<C>;
  constexpr int kChunk = 32;  // units between two prefetches
  // As if elements had four bytes: lines of smaller ones are fetched twice, which costs nothing.
  const std::byte* next_gradient = gradient.elements + kPrefetchDistance * gradient.element_bytes;
  const int gradient_stride = 16 * gradient.element_bytes;
  const float* next_residual = kHasResidual ? residual + kPrefetchDistance : nullptr;
  const typename C::Unit* next_codes = codes + kPrefetchDistance / kPlanes;
  for (int chunk = 0; chunk < kUnits; chunk += kChunk) {
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kPlanes; ++i) {
      __builtin_prefetch(next_gradient, false, 3);
      next_gradient += gradient_stride;
    }
    if constexpr (kHasResidual) prefetch<true>(next_residual + chunk * kPlanes, kChunk * kPlanes);
    if (fetches_codes) prefetch<true>(next_codes + chunk, kChunk);
    for (int unit = chunk; unit < chunk + kChunk; ++unit) {
      uint32_t packed = 0;
      for (int plane = 0; plane < kPlanes; ++plane) {
        const int i = plane * kUnits + unit;
        const float value = stash[i];
        Quantized quantized;
        if constexpr (kIsStochastic) {
          quantized = C::quantize_stochastic(value, scale, noise[i]);
        } else {
          quantized = C::quantize(value, scale);
        }
        packed |= quantized.code << (plane * kCodeBits<C> % 32);
        if constexpr (kHasResidual) {
          const float left_out = value - quantized.value;
          if constexpr (C::kIsRotated) {
            stash[i] = left_out;
          } else if constexpr (kIsFinite) {
            residual[i] = left_out;
          } else {
            const float previous = residual[i];
            residual[i] = is_finite(left_out) ? left_out : previous;
          }
        }
      }
      codes[unit] = static_cast<typename C::Unit>(packed);
    }
  }
  if constexpr (C::kIsRotated && kHasResidual) rotate_back(stash, signs, residual);
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
