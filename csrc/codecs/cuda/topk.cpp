#include "codecs/cuda/topk.h"

#include <algorithm>

#include "codecs/cuda/topk_kernels.cuh"
#include "codecs/cuda/workspace.h"
#include "codecs/payload.h"

namespace fastcomm {
namespace cuda_topk {
namespace {

constexpr int64_t kSmallestSampled = 1 << 13;  // below it, every element is a candidate

// Appends one row for each piece with elements, and the last; returns the number of elements.
template <class SomePieces, class MakePiece>
Pieces upload_pieces(CudaWorkspace& workspace, const SomePieces& pieces, MakePiece&& make_piece) {
  std::vector<Piece> table;
  int64_t num_elements = 0;
  for (const auto& piece : pieces) {
    if (piece.num_elements == 0) continue;
    table.push_back(make_piece(piece, num_elements));
    num_elements += piece.num_elements;
  }
  table.push_back({nullptr, nullptr, num_elements, nullptr});
  const Piece* const uploaded =
      workspace.tables.upload<Piece>(workspace.allocate, workspace.stream, table);
  return {uploaded, static_cast<int32_t>(table.size()) - 1, num_elements};
}

}  // namespace
}  // namespace cuda_topk

using namespace cuda_topk;

void CudaTopK::encode(CudaWorkspace& workspace, DType dtype, std::span<const TopKPiece> pieces,
                      int64_t k, std::span<const std::byte* const> received, std::byte* section) {
  const int64_t num_elements = num_elements_of(pieces);
  if (num_elements == 0) return;
  const DeviceAllocate& allocate = workspace.allocate;
  const cudaStream_t stream = workspace.stream;
  const bool has_feedback = pieces.front().residual != nullptr;
  float* scratch_residual = nullptr;
  if (!has_feedback && !received.empty()) {
    // Received values need somewhere to be added in f32.
    scratch_residual = scratch_residual_.reserve_array<float>(allocate, num_elements);
    FASTCOMM_CUDA_CHECK(cudaMemsetAsync(scratch_residual, 0,
                                        static_cast<size_t>(num_elements) * sizeof(float), stream));
  }
  EncodeCall call{};
  call.layout = TopKSectionLayout(k, num_elements);
  call.pieces = upload_pieces(workspace, pieces, [&](const TopKPiece& piece, int64_t first) {
    float* const residual = scratch_residual != nullptr ? scratch_residual + first : piece.residual;
    return Piece{const_cast<void*>(piece.gradient), residual, first, piece.velocity};
  });
  call.dtype = dtype;
  call.has_residual = has_feedback || scratch_residual != nullptr;
  call.has_velocity = pieces.front().velocity != nullptr;
  call.is_sampled = num_elements >= kSmallestSampled && k < num_elements / 4;
  call.failed = workspace.failed;
  call.k = static_cast<uint32_t>(k);
  const int64_t capacity = call.is_sampled ? std::min(num_elements, 2 * k + 16384) : num_elements;
  call.capacity = static_cast<uint32_t>(capacity);
  const int64_t num_sub_blocks = call.layout.num_sub_blocks;
  call.state = state_.get(allocate, stream);
  call.tiles = tiles_.reserve_array<TileRecord>(allocate, num_sub_blocks * kTilesPerSubBlock);
  call.candidate_indices = candidate_indices_.reserve_array<uint32_t>(allocate, capacity);
  call.candidate_values = candidate_values_.reserve_array<float>(allocate, capacity);
  call.close_calls = close_calls_.reserve_array<uint2>(allocate, kCloseCallCapacity);
  call.num_above = num_above_.reserve_array<uint32_t>(allocate, num_sub_blocks);
  call.num_ties = num_ties_.reserve_array<uint32_t>(allocate, num_sub_blocks);
  call.num_before = num_before_.reserve_array<uint2>(allocate, num_sub_blocks + 1);
  call.section = section;
  if (!received.empty()) {
    const auto num_received = static_cast<int64_t>(received.size());
    call.saved = saved_.reserve_array<SavedResidual>(allocate, num_received * k);
    call.saved_ranges = saved_ranges_.reserve_array<SavedRange>(allocate, num_sub_blocks);
    const std::byte* const* const sections =
        workspace.tables.upload<const std::byte*>(allocate, stream, received);
    const uint32_t* const first_entries =
        find_first_entries(workspace, call.layout, k, sections, num_received);
    enqueue_add_received({call.pieces, dtype, call.failed, num_received, sections, first_entries,
                          call.saved, call.saved_ranges, call.layout},
                         stream);
  }
  if (call.is_sampled) enqueue_sample(call, stream);
  enqueue_accumulate(call, stream);
  enqueue_cutoff(call, stream);
  enqueue_emit(call, stream);
}

void CudaTopK::decode(CudaWorkspace& workspace, DType dtype,
                      std::span<const TopKDecoder::OutPiece> pieces, int64_t k, float factor,
                      std::span<const std::byte* const> sections) {
  const Pieces out =
      upload_pieces(workspace, pieces, [](const TopKDecoder::OutPiece& piece, int64_t first) {
        return Piece{piece.out, nullptr, first, nullptr};
      });
  if (out.num_elements == 0) return;
  DecodeCall call{};
  call.layout = TopKSectionLayout(k, out.num_elements);
  call.pieces = out;
  call.failed = workspace.failed;
  call.factor = factor;
  call.num_sections = static_cast<int64_t>(sections.size());
  if (!sections.empty()) {
    call.sections =
        workspace.tables.upload<const std::byte*>(workspace.allocate, workspace.stream, sections);
    call.first_entries =
        find_first_entries(workspace, call.layout, k, call.sections, call.num_sections);
  }
  enqueue_decode(dtype, call, workspace.stream);
}

const uint32_t* CudaTopK::find_first_entries(CudaWorkspace& workspace,
                                             const TopKSectionLayout& layout, int64_t k,
                                             const std::byte* const* sections,
                                             int64_t num_sections) {
  auto* const first_entries = first_entries_.reserve_array<uint32_t>(
      workspace.allocate, num_sections * (layout.num_sub_blocks + 1));
  enqueue_first_entries(sections, num_sections, k, layout, first_entries, workspace.stream);
  return first_entries;
}

}  // namespace fastcomm
