#pragma once
// The top-k codec: the section of the k largest magnitudes of an index space.
//
// A section is, each part 16-byte aligned and zero-padded:
//   u32 count  for each sub-block of 65536 indices
//   u16 offset within the sub-block, k entries
//   u16 bf16 value, k entries
// Entries are in order of their index. Where fewer than k values are not zero, fewer than k
// entries count; the section's size is that of k all the same, so that every rank knows the size
// of what it receives. What bf16 rounding leaves out stays in the residual.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codecs/sparse/selection.h"

namespace fastcomm {

inline constexpr uint8_t kTopKWireId = 1;

// Above this density int4 takes fewer bytes than the sparse form (0.508 against 4 * density bytes
// per element) and keeps every element.
inline constexpr double kLargestSparseDensity = 0.12;

// How many of `num_elements` elements are sent: round(density * num_elements), at least one.
int64_t topk_count(double density, int64_t num_elements);

int64_t topk_section_bytes(int64_t k, int64_t num_elements);

// Throws PayloadError if a section would lead out of bounds, or back.
void check_topk_section(const std::byte* section, int64_t k, int64_t num_elements);

class TopKEncoder {
 public:
  // Adds `received` (sections of the same k, or none) to the residuals, selects, writes `section`,
  // and leaves in the residuals what the section does not hold. Velocities of what it does hold
  // become 0: the momentum that an element gathered is sent (factor masking of Deep Gradient
  // Compression). Not where the value is not finite, which nobody will use.
  // Throws PayloadError if a received section is malformed; the residuals are then as they were.
  void encode(const TopKExecution& execution, DType dtype, std::span<const TopKPiece> pieces,
              int64_t k, std::span<const std::byte* const> received, std::span<std::byte> section);

 private:
  // Without error feedback, received values still need somewhere to be added in f32.
  std::span<const TopKPiece> with_residuals(std::span<const TopKPiece> pieces);
  void mask_velocities(std::span<const TopKPiece> pieces) const;
  void add_received(DType dtype, std::span<const TopKPiece> pieces, int64_t k,
                    const std::byte* received);

  struct SavedResidual {
    int64_t index;
    float residual;
  };

  TopKSelection selection_;
  std::vector<SavedResidual> saved_;  // where a received value makes the sum non-finite
  std::vector<float> scratch_residual_;
  std::vector<TopKPiece> scratch_pieces_;
};

class TopKDecoder {
 public:
  struct OutPiece {
    void* out;  // num_elements elements of the given dtype
    int64_t num_elements;
  };
  // out = factor * (decode(section 0) + decode(section 1) + ...)
  // Throws PayloadError if a section is malformed; `out` is unspecified then.
  void decode(const TopKExecution& execution, DType dtype, std::span<const OutPiece> pieces,
              int64_t k, float factor, std::span<const std::byte* const> sections);

 private:
  std::vector<int64_t> first_entries_;  // of each sub-block and section
};

}  // namespace fastcomm
