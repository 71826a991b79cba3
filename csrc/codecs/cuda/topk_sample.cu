// The threshold of the candidates, judged by a sample.

#include "codecs/cuda/topk_device.cuh"
#include "codecs/cuda/topk_sample.cuh"

namespace fastcomm::cuda_topk {
namespace {

constexpr int kThreads = 1024;
constexpr int kElementsPerThread = 4;

__global__ void __launch_bounds__(kThreads)
    sample_kernel(EncodeCall call, int64_t stride, int64_t num_sampled, uint32_t num_wanted) {
  const bool is_nan = has_failed(call.failed);
  const int64_t num_threads = int64_t{gridDim.x} * kThreads;
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (int step = 0; step < kElementsPerThread; ++step, i += num_threads) {
    if (i >= num_sampled) break;
    const int64_t index = sampled_index(stride, i);
    const Piece* piece = find_piece(call.pieces, index);
    const int64_t offset = index - piece->first_index;
    float value = gradient_value(call.dtype, piece->elements, offset);
    if (call.has_residual) value += piece->residual[offset];
    value = is_nan ? bits_float(kNanBits) : with_one_nan(value);
    const uint32_t magnitude = magnitude_bits(value);
    // Zeros would all be in one bin, and are no candidates.
    if (magnitude != 0) atomicAdd(&call.state->sample_bins[magnitude >> kSampleBinShift], 1u);
  }
  if (!is_last_block(&call.state->sample_blocks_done)) return;
  auto* quads = reinterpret_cast<uint4*>(call.state->sample_bins);
  constexpr int kQuads = kSampleBins / 4 / kThreads;
  const FoundBin found =
      find_bin<kQuads>(num_wanted, [&](uint32_t i) { return __ldcg(quads + i); });
  for (int i = static_cast<int>(threadIdx.x); i < kSampleBins / 4; i += kThreads) {
    quads[i] = make_uint4(0, 0, 0, 0);
  }
  if (threadIdx.x == 0) {
    uint32_t threshold = found.bin << kSampleBinShift;
    if (threshold == 0) threshold = 1;
    if (threshold > kInfinityBits) threshold = kInfinityBits;  // so that Inf is a candidate
    call.state->threshold = threshold;
  }
}

}  // namespace

void enqueue_sample(const EncodeCall& call, cudaStream_t stream) {
  const Sample sample = plan_sample(call.k, call.pieces.num_elements);
  constexpr int64_t kBlockElements = int64_t{kThreads} * kElementsPerThread;
  const int64_t num_blocks = (sample.num_elements + kBlockElements - 1) / kBlockElements;
  launch(sample_kernel, num_blocks, kThreads, stream, call, sample.stride, sample.num_elements,
         sample.num_wanted);
}

}  // namespace fastcomm::cuda_topk
