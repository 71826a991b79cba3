// CRC32C of a payload by all threads of a grid; core/crc32c.cpp and core/crc32c_polynomial.h define
// the arithmetic.
//
// The checksum is linear in the message. A *vector* is 16 bytes; thread t of the T threads takes
// the vectors t, t + T, t + 2T, ... (of a body that is led by as many zeros as make it a multiple
// of T vectors, which change nothing), and keeps a remainder for each of their four words:
//
//   remainder = remainder * x^(128 T) + word
//
// by four look-ups in a table. In the end each remainder is multiplied by the power of x at which
// its last word stands, and the sum of all of them, an exclusive or, is the body's: whatever the
// order, the same bits. The block that finishes last completes the header or checks it.

#include <algorithm>

#include "codecs/cuda/checksum.h"
#include "codecs/cuda/warp.cuh"
#include "core/crc32c_polynomial.h"

namespace fastcomm {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr int64_t kVectorBits = 8 * kVectorBytes;
// Of large bodies; smaller ones take one block.
constexpr int kManyBlocks = 128;
constexpr int64_t kLargestOfOneBlock = int64_t{1} << 16;

template <int kNumPowers>
struct Powers {
  uint32_t power[kNumPowers];  // x^(kNumPowers - 1 - i times `bits`)
};

template <int kNumPowers>
constexpr Powers<kNumPowers> make_powers(uint64_t bits) {
  Powers<kNumPowers> powers{};
  const uint32_t factor = power_of_x(bits);
  uint32_t power = kRemainderOne;
  for (int i = kNumPowers - 1; i >= 0; --i, power = times(power, factor)) powers.power[i] = power;
  return powers;
}

// At which power the last vector of a thread stands among those of its block, and of a block among
// those of the grid.
__device__ constexpr Powers<kThreads> kThreadPowers = make_powers<kThreads>(kVectorBits);
__device__ constexpr Powers<kManyBlocks> kBlockPowers =
    make_powers<kManyBlocks>(kVectorBits * kThreads);
constexpr uint32_t kWordPower = power_of_x(32);

struct ChecksumArguments {
  const std::byte* body;
  int64_t num_vectors;
  ChecksumState* state;
  uint32_t body_power;            // x^(bits of the body)
  uint32_t header_remainder;      // of `header`
  uint32_t header[kHeaderWords];  // that is expected, or to be written
  uint32_t* payload;              // seal: where the header goes
  const uint32_t* received;       // check: the header that came
  uint32_t* failed;
  DeviceFailure* failure;
};

// The remainder of a header before the checksum, times `body_power`: at its place before the body.
FASTCOMM_HOST_DEVICE uint32_t header_remainder(const uint32_t* header, uint32_t body_power) {
  uint32_t remainder = ~0u;
  for (int i = 0; i < kHeaderWords - 1; ++i) remainder = times(remainder ^ header[i], kWordPower);
  return times(remainder, body_power);
}

__device__ void complete(const ChecksumArguments& arguments, uint32_t body_remainder) {
  const uint32_t checksum = ~(arguments.header_remainder ^ body_remainder);
  if (arguments.payload != nullptr) {
    for (int i = 0; i < kHeaderWords - 1; ++i) arguments.payload[i] = arguments.header[i];
    arguments.payload[kHeaderWords - 1] = checksum;
    return;
  }
  const uint32_t* received = arguments.received;
  bool is_equal = received[kHeaderWords - 1] == checksum;
  for (int i = 0; i < kHeaderWords - 1; ++i) is_equal &= received[i] == arguments.header[i];
  if (is_equal || atomicCAS(arguments.failed, 0u, 1u) != 0) return;
  for (int i = 0; i < kHeaderWords; ++i) {
    arguments.failure->received[i] = received[i];
    arguments.failure->expected[i] = arguments.header[i];
  }
  // Of what came: another label in an undamaged payload is no damage.
  arguments.failure->expected[kHeaderWords - 1] =
      ~(header_remainder(received, arguments.body_power) ^ body_remainder);
  __threadfence_system();
  arguments.failure->is_set = 1;
}

template <int kNumBlocks>
__global__ void __launch_bounds__(kThreads)
    checksum_kernel(const __grid_constant__ ChecksumArguments arguments) {
  constexpr int64_t kNumThreads = int64_t{kNumBlocks} * kThreads;
  constexpr uint32_t kStridePower = power_of_x(kVectorBits * kNumThreads);
  __shared__ uint32_t products[4][256];  // byte k of a remainder times kStridePower
  __shared__ uint32_t of_warp[kThreads / kWarpLanes];
  const auto thread = static_cast<int>(threadIdx.x);
  for (int k = 0; k < 4; ++k) {
    products[k][thread] = times(static_cast<uint32_t>(thread) << (8 * k), kStridePower);
  }
  __syncthreads();

  const int64_t num_rounds = (arguments.num_vectors + kNumThreads - 1) / kNumThreads;
  const int64_t first =
      int64_t{blockIdx.x} * kThreads + thread + arguments.num_vectors - num_rounds * kNumThreads;
  const auto* vectors = reinterpret_cast<const uint4*>(arguments.body);
  uint32_t remainders[4] = {};
#pragma unroll 4
  for (int64_t round = 0; round < num_rounds; ++round) {
    const int64_t index = first + round * kNumThreads;
    const uint4 vector = index < 0 ? uint4{} : vectors[index];
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t remainder = remainders[i];
      remainders[i] = products[0][remainder & 0xff] ^ products[1][remainder >> 8 & 0xff] ^
                      products[2][remainder >> 16 & 0xff] ^ products[3][remainder >> 24] ^ words[i];
    }
  }
  uint32_t remainder = 0;
  for (int i = 0; i < 4; ++i) remainder = times(remainder ^ remainders[i], kWordPower);
  remainder = times(remainder, kThreadPowers.power[thread]);
  remainder = __reduce_xor_sync(kAllLanes, remainder);
  if (thread % kWarpLanes == 0) of_warp[thread / kWarpLanes] = remainder;
  __syncthreads();
  if (thread != 0) return;
  for (int warp = 1; warp < kThreads / kWarpLanes; ++warp) remainder ^= of_warp[warp];
  remainder = times(remainder, kBlockPowers.power[kManyBlocks - kNumBlocks + blockIdx.x]);
  atomicXor(&arguments.state->remainder, remainder);
  __threadfence();
  if (atomicAdd(&arguments.state->num_finished, 1u) != kNumBlocks - 1) return;
  __threadfence();
  const uint32_t of_body = atomicExch(&arguments.state->remainder, 0u);
  arguments.state->num_finished = 0;
  complete(arguments, of_body);
}

void run(CudaWorkspace& workspace, ChecksumArguments arguments, int64_t body_bytes) {
  arguments.state = workspace.checksum_state.get(workspace.allocate, workspace.stream);
  arguments.num_vectors = body_bytes / kVectorBytes;
  arguments.body_power = power_of_x(8 * static_cast<uint64_t>(body_bytes));
  arguments.header_remainder = header_remainder(arguments.header, arguments.body_power);
  if (body_bytes <= kLargestOfOneBlock) {
    launch(checksum_kernel<1>, 1, kThreads, workspace.stream, arguments);
  } else {
    launch(checksum_kernel<kManyBlocks>, kManyBlocks, kThreads, workspace.stream, arguments);
  }
}

}  // namespace

void seal_on_device(CudaWorkspace& workspace, std::byte* payload, int64_t payload_bytes,
                    const MessageLabel& label, const PayloadFormat& format) {
  ChecksumArguments arguments{};
  std::ranges::copy(make_header(payload_bytes, label, format), arguments.header);
  arguments.body = payload + kHeaderBytes;
  arguments.payload = reinterpret_cast<uint32_t*>(payload);
  run(workspace, arguments, payload_bytes - kHeaderBytes);
}

void check_on_device(CudaWorkspace& workspace, const std::byte* payload, int64_t payload_bytes,
                     const MessageLabel& label, const PayloadFormat& format) {
  ChecksumArguments arguments{};
  std::ranges::copy(make_header(payload_bytes, label, format), arguments.header);
  arguments.body = payload + kHeaderBytes;
  arguments.received = reinterpret_cast<const uint32_t*>(payload);
  arguments.failed = workspace.failed;
  arguments.failure = workspace.failure;
  run(workspace, arguments, payload_bytes - kHeaderBytes);
}

}  // namespace fastcomm
