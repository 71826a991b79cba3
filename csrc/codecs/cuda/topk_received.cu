// Received sections: where the entries of their sub-blocks are, and adding them to the residuals.

#include "codecs/cuda/topk_device.cuh"

namespace fastcomm::cuda_topk {
namespace {

constexpr int kFirstEntriesThreads = 1024;
constexpr int kAddThreads = 512;

// A block for each section.
__global__ void __launch_bounds__(kFirstEntriesThreads)
    first_entries_kernel(const std::byte* const* sections, uint32_t k, int64_t num_sub_blocks,
                         uint32_t* first_entries) {
  const auto* counts = reinterpret_cast<const uint32_t*>(sections[blockIdx.x]);
  uint32_t* firsts = first_entries + int64_t{blockIdx.x} * (num_sub_blocks + 1);
  uint64_t sum = 0;
  for (int64_t first = 0; first <= num_sub_blocks; first += kFirstEntriesThreads) {
    const int64_t i = first + threadIdx.x;
    const auto in_block = block_sum<uint64_t>(i < num_sub_blocks ? counts[i] : 0);
    const uint64_t entry = sum + in_block.before;
    if (i <= num_sub_blocks) firsts[i] = entry < k ? static_cast<uint32_t>(entry) : k;
    sum += in_block.total;
  }
}

// A block for each sub-block, section after section. Where a sum is not finite, the residual is
// saved and becomes NaN: the value, then, is NaN, too, and later sections leave it alone.
__global__ void __launch_bounds__(kAddThreads) add_received_kernel(ReceivedCall call) {
  __shared__ uint32_t num_saved;
  __shared__ bool is_failed;  // looked at once: another stream may set it meanwhile
  const int64_t sub_block = blockIdx.x;
  const uint32_t* firsts = call.first_entries + sub_block;
  const int64_t stride = call.layout.num_sub_blocks + 1;
  SavedRange range{0, 0};
  for (int64_t i = 0; i < call.num_sections; ++i) range.first += firsts[i * stride];
  if (threadIdx.x == 0) {
    num_saved = 0;
    is_failed = has_failed(call.failed);
  }
  __syncthreads();
  // If it has failed, all values are NaN anyway, and no residual changes.
  const int64_t num_sections = is_failed ? 0 : call.num_sections;
  for (int64_t section = 0; section < num_sections; ++section) {
    const std::byte* const bytes = call.sections[section];
    const auto* offsets = reinterpret_cast<const uint16_t*>(bytes + call.layout.offsets);
    const auto* values = reinterpret_cast<const uint16_t*>(bytes + call.layout.values);
    const uint32_t end = firsts[section * stride + 1];
    for (uint32_t entry = firsts[section * stride] + threadIdx.x; entry < end;
         entry += kAddThreads) {
      const int64_t index = sub_block * kSubBlockElements + offsets[entry];
      if (index >= call.pieces.num_elements) continue;  // malformed
      const Piece* piece = find_piece(call.pieces, index);
      const int64_t offset = index - piece->first_index;
      const float residual = piece->residual[offset];
      if (!is_finite(residual)) continue;
      const float sum = residual + bf16_to_float(values[entry]);
      if (is_finite(sum) && is_finite(sum + gradient_value(call.dtype, piece->elements, offset))) {
        piece->residual[offset] = sum;
      } else {
        call.saved[range.first + atomicAdd(&num_saved, 1u)] = {static_cast<uint32_t>(index),
                                                               residual};
        piece->residual[offset] = bits_float(kNanBits);
      }
    }
    __syncthreads();  // the next section may have the same elements
  }
  range.count = num_saved;
  if (threadIdx.x == 0) call.saved_ranges[sub_block] = range;
}

}  // namespace

void enqueue_first_entries(const std::byte* const* sections, int64_t num_sections, int64_t k,
                           const TopKSectionLayout& layout, uint32_t* first_entries,
                           cudaStream_t stream) {
  launch(first_entries_kernel, num_sections, kFirstEntriesThreads, stream, sections,
         static_cast<uint32_t>(k), layout.num_sub_blocks, first_entries);
}

void enqueue_add_received(const ReceivedCall& call, cudaStream_t stream) {
  launch(add_received_kernel, call.layout.num_sub_blocks, kAddThreads, stream, call);
}

}  // namespace fastcomm::cuda_topk
