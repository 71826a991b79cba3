#pragma once
// The memory that top-k selects from.

#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace fastcomm {

// A contiguous piece of the index space 0 .. sum of num_elements that is selected from.
struct TopKPiece {
  const void* gradient;
  float* residual;  // nullptr: none
  int64_t num_elements;
  float* velocity = nullptr;  // nullptr: none
};

inline int64_t num_elements_of(std::span<const TopKPiece> pieces) {
  int64_t num_elements = 0;
  for (const TopKPiece& piece : pieces) num_elements += piece.num_elements;
  return num_elements;
}

// Element i of a piece's gradient.
inline float gradient_value(DType dtype, const TopKPiece& piece, int64_t i) {
  return visit_dtype(dtype, [&](auto element) {
    return to_float(static_cast<const decltype(element)*>(piece.gradient)[i]);
  });
}

// Walks pieces in step with ascending indices.
class PieceCursor {
 public:
  explicit PieceCursor(std::span<const TopKPiece> pieces) : piece_(pieces.begin()) {}
  void move_to(int64_t index) {
    while (index - first_ >= piece_->num_elements) {
      first_ += piece_->num_elements;
      ++piece_;
    }
    offset_ = index - first_;
  }
  bool has_residual() const { return piece_->residual != nullptr; }
  float& residual() const { return piece_->residual[offset_]; }
  float& velocity() const { return piece_->velocity[offset_]; }
  float gradient(DType dtype) const { return gradient_value(dtype, *piece_, offset_); }

 private:
  std::span<const TopKPiece>::iterator piece_;
  int64_t first_ = 0;
  int64_t offset_ = 0;
};

}  // namespace fastcomm
