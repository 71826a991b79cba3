#pragma once
// The dense codecs on a GPU: the sections of dense/kernels.h, byte for byte.
//
// One launch handles all sections of one format that a payload has: its blocks are numbered
// through, a warp takes one block at a time.

#include <cstddef>
#include <cstdint>

#include "codecs/cuda/inline_list.h"
#include "codecs/dense/kernels.h"

namespace fastcomm {

// A section and the elements that it is of.
struct DensePiece {
  int64_t first_block;  // number of its first block among those of the launch
  int64_t begin;        // index in the bucket of its first element
  int64_t num_elements;
  int64_t section_offset;  // in the payload
};

using DensePieces = InlineList<DensePiece, 4>;
using PayloadList = InlineList<const std::byte*, 8>;

// The signs of a rotation, a bit for each element; `rotates` false: leave the rotation out.
struct RotationSignBits {
  uint32_t words[kRotationElements / 32];
  bool rotates;
};
RotationSignBits make_rotation_sign_bits(uint32_t seed, bool rotates);

// Blocks first_block .. end_block - 1 of those that the pieces have.
struct CudaEncodeArguments {
  DensePieces pieces;
  int64_t first_block, end_block;
  const void* gradient;  // of the bucket, elements of the given dtype
  float* residual;       // of the bucket; nullptr: no error feedback
  PayloadList received;
  std::byte* payload;
  RotationSignBits signs;
  RoundingNoise noise;  // `first_element` is not used
  bool is_stochastic;
  const uint32_t* failed;  // CudaWorkspace::failed
};

struct CudaDecodeArguments {
  DensePieces pieces;
  int64_t first_block, end_block;
  PayloadList payloads;
  void* out;  // the bucket
  float factor;
  RotationSignBits signs;
  const uint32_t* failed;
};

// Enqueue the kernels of one codec; dense/kernels.h says what they do.
struct CudaDenseKernels {
  void (*encode)(DType, const CudaEncodeArguments&, cudaStream_t);
  void (*decode)(DType, const CudaDecodeArguments&, cudaStream_t);
};

CudaDenseKernels cuda_dense_kernels(uint8_t wire_id);

}  // namespace fastcomm
