#pragma once
// The top-k codec on a GPU: the sections of sparse/topk.h, byte for byte.

#include <cstddef>
#include <cstdint>
#include <span>

#include "codecs/cuda/tables.h"
#include "codecs/sparse/pieces.h"
#include "codecs/sparse/section.h"
#include "codecs/sparse/topk.h"
#include "core/cuda.h"

namespace fastcomm {

struct CudaWorkspace;
namespace cuda_topk {
struct State;
}

// Buffers of a selection, kept from call to call so that a step allocates nothing. All calls only
// enqueue work on the workspace's stream; all pointers are to device memory.
class CudaTopK {
 public:
  // As TopKEncoder::encode. Sections are aligned to 16 bytes. Entries of a malformed received
  // section that would lead out of bounds are ignored.
  void encode(CudaWorkspace& workspace, DType dtype, std::span<const TopKPiece> pieces, int64_t k,
              std::span<const std::byte* const> received, std::byte* section);

  // As TopKDecoder::decode.
  void decode(CudaWorkspace& workspace, DType dtype, std::span<const TopKDecoder::OutPiece> pieces,
              int64_t k, float factor, std::span<const std::byte* const> sections);

 private:
  // topk_kernels.cuh says what these are.
  const uint32_t* find_first_entries(CudaWorkspace& workspace, const TopKSectionLayout& layout,
                                     int64_t k, const std::byte* const* sections,
                                     int64_t num_sections);

  ZeroedOnDevice<cuda_topk::State> state_;
  DeviceBuffer tiles_;
  DeviceBuffer candidate_indices_;
  DeviceBuffer candidate_values_;
  DeviceBuffer close_calls_;
  DeviceBuffer num_above_;
  DeviceBuffer num_ties_;
  DeviceBuffer num_before_;
  DeviceBuffer first_entries_;
  DeviceBuffer saved_;
  DeviceBuffer saved_ranges_;
  DeviceBuffer scratch_residual_;
};

}  // namespace fastcomm
