#pragma once
// How a bucket is encoded, and where it is: what callers of the codecs hand over.

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/dtype.h"

namespace fastcomm {

// A codec and its parameters. Parsing of user input is the Python layer's.
struct CodecSpec {
  std::string name;            // a dense codec, or "topk"
  double density = 1.0;        // top-k only, in (0, kLargestSparseDensity]
  bool is_stochastic = false;  // round at random; only for codecs that can, and without residual
  uint32_t seed = 0;           // of the rotation and of stochastic rounding
  bool rotates = true;         // false, in benchmarks: what a rotated codec costs without rotation
};

// Contiguous elements of a bucket that have the same codec.
struct Run {
  int64_t num_elements;
  int codec;  // index in the bucket's list of codecs
};

// Memory of a bucket; must outlive its use. Without error feedback `residual` is nullptr.
struct BucketMemory {
  void* gradient;  // num_elements elements of `dtype`; receives the result
  DType dtype;
  float* residual;  // num_elements
  int64_t num_elements;
  // num_elements; nullptr: no momentum correction. Encodings by a sparse codec set what they send
  // to 0 (velocity/velocity.h).
  float* velocity = nullptr;

  void* gradient_at(int64_t element) const {
    return static_cast<std::byte*>(gradient) + static_cast<size_t>(element) * dtype_bytes(dtype);
  }
  float* residual_at(int64_t element) const {
    return residual == nullptr ? nullptr : residual + element;
  }
  float* velocity_at(int64_t element) const {
    return velocity == nullptr ? nullptr : velocity + element;
  }
};

}  // namespace fastcomm
