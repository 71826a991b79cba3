#include "core/isa.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "core/check.h"

namespace fastcomm {
namespace {

constexpr std::string_view kNames[kNumIsas] = {"baseline", "avx2", "avx512"};

std::vector<Isa> detect() {
  std::vector<Isa> isas{Isa::kBaseline};
#if FASTCOMM_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) {
    isas.push_back(Isa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      isas.push_back(Isa::kAvx512);
    }
  }
#endif
  return isas;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{supported_isas().back()};
  return isa;
}

}  // namespace

std::string_view isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const std::vector<Isa>& supported_isas() {
  static const std::vector<Isa> isas = detect();
  return isas;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void force_isa(std::string_view name) {
  if (name.empty()) {
    active() = supported_isas().back();
    return;
  }
  std::string supported;
  for (Isa isa : supported_isas()) {
    if (isa_name(isa) == name) {
      active() = isa;
      return;
    }
    supported += (supported.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  FASTCOMM_FAIL("instruction set '" << name
                                    << "' is not supported by this CPU; supported: " << supported);
}

}  // namespace fastcomm
