// The Hadamard rotation for one instruction set; included by loops.inl.
// rotation.h defines the words.
//
// Every instruction set does the same additions in the same order of stages: the results are equal
// bit by bit.

namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE {

constexpr int kLanes = FASTCOMM_LOOPS_LANES;
typedef float Lanes __attribute__((vector_size(4 * FASTCOMM_LOOPS_LANES)));
typedef int32_t LaneBits __attribute__((vector_size(4 * FASTCOMM_LOOPS_LANES)));

// One stage at a distance within a vector: lane i becomes the sum of lanes i and i ^ kDistance, or
// their difference in the upper lane of a pair.
template <int kDistance, int... kLane>
FASTCOMM_INLINE_LOOP void butterfly_lanes(Lanes& lanes, std::integer_sequence<int, kLane...>) {
  constexpr LaneBits kFlips = {((kLane & kDistance) != 0 ? INT32_MIN : 0)...};
#if defined(__clang__)
  const Lanes partners = __builtin_shufflevector(lanes, lanes, (kLane ^ kDistance)...);
#else
  constexpr LaneBits kPartners = {(kLane ^ kDistance)...};
  const Lanes partners = __builtin_shuffle(lanes, kPartners);
#endif
  lanes = partners + reinterpret_cast<Lanes>(reinterpret_cast<LaneBits>(lanes) ^ kFlips);
}

template <int kDistance>
FASTCOMM_INLINE_LOOP void stages_in_lanes(Lanes& lanes) {
  butterfly_lanes<kDistance>(lanes, std::make_integer_sequence<int, kLanes>{});
  if constexpr (2 * kDistance < kLanes) stages_in_lanes<2 * kDistance>(lanes);
}

// kCount / 2 butterflies at each distance 1, 2, ... kCount / 2 between whole vectors.
template <int kCount>
FASTCOMM_INLINE_LOOP void stages_across(Lanes* vectors) {
#pragma GCC unroll 4
  for (int distance = 1; distance < kCount; distance *= 2) {
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) {
      if ((v & distance) != 0) continue;
      const Lanes a = vectors[v];
      const Lanes b = vectors[v + distance];
      vectors[v] = a + b;
      vectors[v + distance] = a - b;
    }
  }
}

FASTCOMM_INLINE_LOOP void load(const float* block, int vector, Lanes& lanes) {
  std::memcpy(&lanes, block + vector * kLanes, sizeof lanes);
}

FASTCOMM_INLINE_LOOP void store(const Lanes& lanes, int vector, float* block) {
  std::memcpy(block + vector * kLanes, &lanes, sizeof lanes);
}

FASTCOMM_INLINE_LOOP void flip(const RotationSigns& signs, int vector, Lanes& lanes) {
  LaneBits flips;
  std::memcpy(&flips, signs.flips + vector * kLanes, sizeof flips);
  lanes = reinterpret_cast<Lanes>(reinterpret_cast<LaneBits>(lanes) ^ flips);
}

// Flips signs and rotates a whole block (kIsForward), or rotates it back and flips signs, from `in`
// to `out`, which may be the same. The stages run in two passes whose vectors fit in registers.
template <bool kIsForward>
FASTCOMM_INLINE_LOOP void rotate_block(const float* in, float* out, const RotationSigns& signs) {
  constexpr float kNorm = 1.0f / 16.0f;  // 1 / sqrt(kRotationElements)
  constexpr int kVectors = kRotationElements / kLanes;
  constexpr int kGroup = kLanes == 16 ? 16 : 8;
  constexpr int kNumGroups = kVectors / kGroup;
  for (int group = 0; group < kNumGroups; ++group) {
    Lanes vectors[kGroup];
#pragma GCC unroll 16
    for (int v = 0; v < kGroup; ++v) {
      load(in, group * kGroup + v, vectors[v]);
      if (kIsForward) flip(signs, group * kGroup + v, vectors[v]);
      stages_in_lanes<1>(vectors[v]);
    }
    stages_across<kGroup>(vectors);
#pragma GCC unroll 16
    for (int v = 0; v < kGroup; ++v) {
      if (kNumGroups == 1) vectors[v] *= kNorm;
      if (kNumGroups == 1 && !kIsForward) flip(signs, group * kGroup + v, vectors[v]);
      store(vectors[v], group * kGroup + v, out);
    }
  }
  if constexpr (kNumGroups > 1) {
    for (int first = 0; first < kGroup; ++first) {
      Lanes vectors[kNumGroups];
#pragma GCC unroll 16
      for (int v = 0; v < kNumGroups; ++v) load(out, first + v * kGroup, vectors[v]);
      stages_across<kNumGroups>(vectors);
#pragma GCC unroll 16
      for (int v = 0; v < kNumGroups; ++v) {
        vectors[v] *= kNorm;
        if (!kIsForward) flip(signs, first + v * kGroup, vectors[v]);
        store(vectors[v], first + v * kGroup, out);
      }
    }
  }
}

// The normalized transform of a tail.
FASTCOMM_LOOPS_TARGET inline void transform_tail(float* __restrict__ values, int count) {
  int first = 0;
  for (int size = kRotationElements / 2; size > 0; size /= 2) {
    if ((count & size) == 0) continue;
    float* piece = values + first;
    for (int distance = 1; distance < size; distance *= 2) {
      for (int i = 0; i < size; ++i) {
        if ((i & distance) != 0) continue;
        const float a = piece[i];
        const float b = piece[i + distance];
        piece[i] = a + b;
        piece[i + distance] = a - b;
      }
    }
    const float norm = 1.0f / std::sqrt(static_cast<float>(size));
    for (int i = 0; i < size; ++i) piece[i] *= norm;
    first += size;
  }
}

FASTCOMM_LOOPS_TARGET inline void flip_tail(float* __restrict__ values, int count,
                                            const RotationSigns& signs) {
  for (int i = 0; i < count; ++i) values[i] = bits_float(float_bits(values[i]) ^ signs.flips[i]);
}

// Rotates a whole block in place.
FASTCOMM_INLINE_LOOP void rotate(float* values, const RotationSigns* signs) {
  if (signs != nullptr) rotate_block<true>(values, values, *signs);
}

// The inverse, from `values`, which are overwritten, to `out`.
FASTCOMM_INLINE_LOOP void rotate_back(float* values, const RotationSigns* signs, float* out) {
  if (signs != nullptr) return rotate_block<false>(values, out, *signs);
  if (out != values) std::memcpy(out, values, kRotationElements * sizeof(float));
}

// The same of `count` values, less than a block, both in place.
FASTCOMM_LOOPS_TARGET inline void rotate_tail(float* values, int count,
                                              const RotationSigns* signs) {
  if (signs == nullptr) return;
  flip_tail(values, count, *signs);
  transform_tail(values, count);
}

FASTCOMM_LOOPS_TARGET inline void rotate_tail_back(float* values, int count,
                                                   const RotationSigns* signs) {
  if (signs == nullptr) return;
  transform_tail(values, count);
  flip_tail(values, count, *signs);
}

}  // namespace fastcomm::FASTCOMM_LOOPS_NAMESPACE
