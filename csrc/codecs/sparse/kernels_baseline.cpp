// The top-k loops for any CPU; on x86-64, SSE2.
#include "codecs/sparse/kernels.h"
#include "core/loops_baseline.h"

namespace fastcomm::baseline {

FASTCOMM_LOOPS_TARGET inline void append_candidates(const float* stash, int count,
                                                    uint32_t first_index, uint32_t threshold,
                                                    CandidateBuffer& candidates) {
  append_candidates_one_by_one(stash, count, first_index, threshold, candidates);
}

}  // namespace fastcomm::baseline

#include "codecs/sparse/loops.inl"

namespace fastcomm {
TopKKernels topk_kernels_baseline() { return {baseline::accumulate, baseline::write}; }
}  // namespace fastcomm
