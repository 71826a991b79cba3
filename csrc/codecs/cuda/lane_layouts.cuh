#pragma once
// Which elements of a block a lane of a warp holds: in registers, kSlots of them.
//
//   Quads    runs of four: slot s of a lane is element 128 * (s / 4) + 4 * lane + s % 4. Memory is
//     accessed in quads, 16 bytes of f32 each, which must be aligned.
//   Strided  slot s is element 32 * s + lane. Memory is accessed element by element, coalesced:
//     runs of a bucket may begin anywhere.
//
// Both load and store elements, and units: element e = plane * kUnits + j has its code in unit j
// (dense/concept.h). In Strided, as all units of a plane are a multiple of 32, a slot is of one
// plane; in Quads, the quads of a plane are whole vectors of 128 elements, or groups of lanes.

#include "codecs/cuda/warp.cuh"
#include "codecs/dense/section.h"

namespace fastcomm {

// Memory of `kBytes` bytes that is accessed at once.
template <int kBytes>
struct Vector;
template <>
struct Vector<4> {
  using type = uint32_t;
};
template <>
struct Vector<8> {
  using type = uint2;
};
template <>
struct Vector<16> {
  using type = uint4;
};

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T values[4];
};

template <class T>
__device__ __forceinline__ Quad<T> load_quad(const T* from) {
  using Bits = typename Vector<sizeof(Quad<T>)>::type;
  const Bits bits = __ldcs(reinterpret_cast<const Bits*>(from));
  Quad<T> quad;
  memcpy(&quad, &bits, sizeof quad);
  return quad;
}

template <class T>
__device__ __forceinline__ void store_quad(T* to, const Quad<T>& quad) {
  using Bits = typename Vector<sizeof(Quad<T>)>::type;
  Bits bits;
  memcpy(&bits, &quad, sizeof bits);
  *reinterpret_cast<Bits*>(to) = bits;
}

template <class C>
struct Quads {
  static constexpr int kBlock = C::kBlockElements;
  static constexpr int kUnits = kBlock / C::kElementsPerUnit;
  static constexpr int kSlots = kBlock / kWarpLanes;
  static constexpr int kVectorElements = 4 * kWarpLanes;
  static constexpr int kVectors = kSlots / 4;
  // A plane is either several vectors, or a group of lanes of one.
  static constexpr bool kPlanesAreVectors = kUnits % kVectorElements == 0;
  static constexpr bool kExists =
      kBlock % kVectorElements == 0 &&
      (kPlanesAreVectors || (kUnits % 4 == 0 && kVectorElements % kUnits == 0));
  static constexpr int kQuadsPerPlane = kUnits / 4;
  // Of stochastic rounding (encode.cuh): slots s and s + kNoiseCounters share one.
  static constexpr int kNoiseCounters = 4;

  static __device__ __forceinline__ int element(int slot, int lane) {
    return slot / 4 * kVectorElements + 4 * lane + slot % 4;
  }

  template <class Element>
  static __device__ __forceinline__ bool is_aligned(const Element* memory) {
    return reinterpret_cast<uintptr_t>(memory) % sizeof(Quad<Element>) == 0;
  }

  // visit(slot, value) for the elements of this lane.
  template <class Element, class Visit>
  static __device__ __forceinline__ void load(const Element* block, int lane, Visit&& visit) {
    Quad<Element> quads[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) quads[v] = load_quad(block + element(4 * v, lane));
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) visit(slot, quads[slot / 4].values[slot % 4]);
  }

  template <class Element, class Value>
  static __device__ __forceinline__ void store(Element* block, int lane, Value&& value) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      Quad<Element> quad;
#pragma unroll
      for (int i = 0; i < 4; ++i) quad.values[i] = value(4 * v + i);
      store_quad(block + element(4 * v, lane), quad);
    }
  }

  // visit(slot, code) for the codes of this lane's elements.
  template <class Visit>
  static __device__ __forceinline__ void load_codes(const typename C::Unit* units, int lane,
                                                    Visit&& visit) {
    using UnitQuad = Quad<typename C::Unit>;
    constexpr int kLoads = kPlanesAreVectors ? kUnits / kVectorElements : 1;
    UnitQuad quads[kLoads];
#pragma unroll
    for (int q = 0; q < kLoads; ++q) {
      quads[q] = load_quad(
          units + (kPlanesAreVectors ? element(4 * q, lane) : 4 * (lane % kQuadsPerPlane)));
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int v = slot / 4;
      const int plane =
          kPlanesAreVectors ? v / kLoads : v * (kVectorElements / kUnits) + lane / kQuadsPerPlane;
      visit(slot, code_in<C>(quads[v % kLoads].values[slot % 4], plane));
    }
  }

  template <class Code>
  static __device__ __forceinline__ void store_codes(typename C::Unit* units, int lane,
                                                     Code&& code) {
    using Unit = typename C::Unit;
    constexpr int kStores = kPlanesAreVectors ? kUnits / kVectorElements : 1;
    uint32_t packed[kStores][4] = {};
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const int v = slot / 4;
      const int plane =
          kPlanesAreVectors ? v / kStores : v * (kVectorElements / kUnits) + lane / kQuadsPerPlane;
      packed[v % kStores][slot % 4] |= code(slot) << (plane * kCodeBits<C> % 32);
    }
    if constexpr (kPlanesAreVectors) {
#pragma unroll
      for (int q = 0; q < kStores; ++q) store_unit_quad(units + element(4 * q, lane), packed[q]);
    } else {
      // Units are at most one byte here or else four shuffles: all four together, if they fit.
      static_assert(sizeof(Unit) == 1, "planes within a vector are of units of one byte");
      uint32_t quad = packed[0][0] | packed[0][1] << 8 | packed[0][2] << 16 | packed[0][3] << 24;
#pragma unroll
      for (int distance = kQuadsPerPlane; distance < kWarpLanes; distance *= 2) {
        quad |= __shfl_xor_sync(kAllLanes, quad, distance);
      }
      if (lane < kQuadsPerPlane) *reinterpret_cast<uint32_t*>(units + 4 * lane) = quad;
    }
  }

 private:
  static __device__ __forceinline__ void store_unit_quad(typename C::Unit* to,
                                                         const uint32_t (&packed)[4]) {
    Quad<typename C::Unit> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.values[i] = static_cast<typename C::Unit>(packed[i]);
    store_quad(to, quad);
  }
};

template <class C>
struct Strided {
  static constexpr int kUnits = C::kBlockElements / C::kElementsPerUnit;
  static constexpr int kSlots = C::kBlockElements / kWarpLanes;
  static_assert(kUnits % kWarpLanes == 0, "a plane must have a multiple of 32 units");
  static constexpr int kSlotsPerPlane = kUnits / kWarpLanes;
  // A quarter of the block may end within a slot.
  static constexpr int kNoiseCounters = kSlots % 4 == 0 ? kSlots / 4 : kSlots;

  static __device__ __forceinline__ int element(int slot, int lane) {
    return slot * kWarpLanes + lane;
  }

  template <class Element, class Visit>
  static __device__ __forceinline__ void load(const Element* block, int lane, Visit&& visit) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) visit(slot, block[element(slot, lane)]);
  }

  template <class Element, class Value>
  static __device__ __forceinline__ void store(Element* block, int lane, Value&& value) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) block[element(slot, lane)] = value(slot);
  }

  template <class Visit>
  static __device__ __forceinline__ void load_codes(const typename C::Unit* units, int lane,
                                                    Visit&& visit) {
    typename C::Unit loaded[kSlotsPerPlane];
#pragma unroll
    for (int i = 0; i < kSlotsPerPlane; ++i) loaded[i] = units[element(i, lane)];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      visit(slot, code_in<C>(loaded[slot % kSlotsPerPlane], slot / kSlotsPerPlane));
    }
  }

  template <class Code>
  static __device__ __forceinline__ void store_codes(typename C::Unit* units, int lane,
                                                     Code&& code) {
    uint32_t packed[kSlotsPerPlane] = {};
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      packed[slot % kSlotsPerPlane] |= code(slot) << (slot / kSlotsPerPlane * kCodeBits<C> % 32);
    }
#pragma unroll
    for (int i = 0; i < kSlotsPerPlane; ++i) {
      units[element(i, lane)] = static_cast<typename C::Unit>(packed[i]);
    }
  }
};

}  // namespace fastcomm
