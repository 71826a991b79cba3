#include "codecs/sparse/kernels.h"

namespace fastcomm {

const TopKKernels& topk_kernels(Isa isa) {
  static const TopKKernels kernels[kNumIsas] = {
      topk_kernels_baseline(),
#if FASTCOMM_X86
      topk_kernels_avx2(),
      topk_kernels_avx512(),
#endif
  };
  return kernels[static_cast<int>(isa)];
}

}  // namespace fastcomm
