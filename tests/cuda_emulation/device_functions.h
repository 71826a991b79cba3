#pragma once
// What device code calls; see cuda_runtime.h.

#include <atomic>

inline void __syncthreads() { cuda_emulation::block_barrier(); }
inline void __syncwarp(unsigned = ~0u) { cuda_emulation::exchange_in_warp(0); }
inline void __threadfence() {}
inline void __threadfence_system() {}

namespace cuda_emulation {

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class Combine>
unsigned reduce(unsigned value, Combine&& combine) {
  const uint64_t* values = exchange_in_warp(value);
  auto result = static_cast<unsigned>(values[0]);
  for (int lane = 1; lane < kWarpLanes; ++lane) {
    result = combine(result, static_cast<unsigned>(values[lane]));
  }
  return result;
}

}  // namespace cuda_emulation

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  const uint64_t* values = cuda_emulation::exchange_in_warp(cuda_emulation::to_word(value));
  return cuda_emulation::from_word<T>(values[lane % cuda_emulation::kWarpLanes]);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int partner = cuda_emulation::current_lane() ^ mask;
  return __shfl_sync(~0u, value, partner);
}

template <class T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
  const int lane = cuda_emulation::current_lane();
  const int source = lane - static_cast<int>(distance);
  return __shfl_sync(~0u, value, source < 0 ? lane : source);
}

inline unsigned __ballot_sync(unsigned, int predicate) {
  const uint64_t* values = cuda_emulation::exchange_in_warp(predicate != 0);
  unsigned ballot = 0;
  for (int lane = 0; lane < cuda_emulation::kWarpLanes; ++lane) {
    ballot |= static_cast<unsigned>(values[lane]) << lane;
  }
  return ballot;
}

inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  return cuda_emulation::reduce(value, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
inline unsigned __reduce_xor_sync(unsigned, unsigned value) {
  return cuda_emulation::reduce(value, [](unsigned a, unsigned b) { return a ^ b; });
}

inline int __popc(unsigned value) { return std::popcount(value); }

template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}

// Blocks run one after another, but ranks that are threads may share memory.
template <class T>
T atomicAdd(T* to, T value) {
  return std::atomic_ref<T>(*to).fetch_add(value);
}
inline unsigned atomicXor(unsigned* to, unsigned value) {
  return std::atomic_ref<unsigned>(*to).fetch_xor(value);
}
template <class T>
T atomicExch(T* to, T value) {
  return std::atomic_ref<T>(*to).exchange(value);
}
template <class T>
T atomicCAS(T* to, T expected, T value) {
  std::atomic_ref<T>(*to).compare_exchange_strong(expected, value);
  return expected;
}
