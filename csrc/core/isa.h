#pragma once
// The CPU instruction sets that the loops are compiled for, chosen at run time.

#include <string_view>
#include <vector>

namespace fastcomm {

enum class Isa { kBaseline, kAvx2, kAvx512 };
inline constexpr int kNumIsas = 3;

std::string_view isa_name(Isa isa);

// What this host can run, from the slowest to the fastest.
const std::vector<Isa>& supported_isas();

// The instruction set in use: the fastest supported one, or the forced one.
Isa active_isa();

// Forces an instruction set by name for the whole process (tests and benchmarks); "" restores the
// automatic choice. Throws Error if the host does not support it.
void force_isa(std::string_view name);

}  // namespace fastcomm

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FASTCOMM_X86 1
// Function attributes instead of per-file flags: one source file holds every instruction set.
// No FMA: a fused multiply-add rounds once where the baseline rounds twice.
#define FASTCOMM_TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
#if defined(__clang__)
#define FASTCOMM_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,lzcnt,popcnt")))
#else
#define FASTCOMM_TARGET_AVX512                                           \
  __attribute__((                                                        \
      target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,lzcnt,popcnt," \
             "prefer-vector-width=512")))
#endif
#else
#define FASTCOMM_X86 0
#endif
