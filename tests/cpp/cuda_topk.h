#pragma once
// Top-k calls on a device, and the same on the CPU.

#include <cstring>
#include <memory>
#include <vector>

#include "codecs/cuda/workspace.h"
#include "codecs/sparse/topk.h"
#include "core/isa.h"
#include "device_memory.h"
#include "doctest.h"
#include "values.h"

namespace fastcomm::testing {

// Stands in for DeviceMemory in the CPU's calls.
class HostMemory {
 public:
  explicit HostMemory(std::span<const std::byte> contents, int64_t = 0)
      : bytes_(contents.begin(), contents.end()) {}
  std::byte* data() { return bytes_.data(); }
  Bytes to_host() const { return bytes_; }

 private:
  Bytes bytes_;
};

struct TopKInputs {
  DType dtype = DType::kFloat32;
  int64_t k = 1;
  std::vector<float> gradient = {};
  std::vector<float> residual = {};  // empty: no error feedback
  std::vector<Bytes> received = {};
  std::vector<int64_t> cuts = {};  // where pieces begin, but for the first
  int64_t misalignment = 0;        // each piece begins so many elements after an aligned address
};

struct TopKOutputs {
  Bytes section;
  std::vector<float> residual;
  Bytes decoded;  // of the section and the received ones, times 0.5
};

// Calls visit(first index, number of elements) for each piece.
template <class Visit>
void for_each_piece(const TopKInputs& inputs, Visit&& visit) {
  int64_t first = 0;
  for (const int64_t cut : inputs.cuts) {
    visit(first, cut - first);
    first = cut;
  }
  visit(first, static_cast<int64_t>(inputs.gradient.size()) - first);
}

// The pieces of a call, in memory of their own. The CPU's and the device's calls take the same.
template <class Memory>
class TopKMemory {
 public:
  explicit TopKMemory(const TopKInputs& inputs) {
    const auto element_bytes = static_cast<int64_t>(dtype_bytes(inputs.dtype));
    const Bytes gradient = to_dtype(inputs.dtype, inputs.gradient);
    const auto residual = std::as_bytes(std::span(inputs.residual));
    for_each_piece(inputs, [&](int64_t first, int64_t count) {
      const auto part_of = [&](std::span<const std::byte> all, int64_t bytes) {
        return place(
            all.subspan(static_cast<size_t>(first * bytes), static_cast<size_t>(count * bytes)),
            inputs.misalignment * bytes);
      };
      std::byte* const gradient_piece = part_of(gradient, element_bytes)->data();
      float* residual_piece = nullptr;
      if (!inputs.residual.empty()) {
        residuals_.push_back(part_of(residual, sizeof(float)));
        residual_piece = reinterpret_cast<float*>(residuals_.back()->data());
      }
      outs_.push_back(part_of(Bytes(gradient.size(), std::byte{0xa5}), element_bytes));
      pieces.push_back({gradient_piece, residual_piece, count});
      out_pieces.push_back({outs_.back()->data(), count});
    });
    for (const Bytes& bytes : inputs.received) received.push_back(place(bytes, 0)->data());
    const auto n = static_cast<int64_t>(inputs.gradient.size());
    section_bytes_ = static_cast<size_t>(topk_section_bytes(inputs.k, n));
    section_ = place(Bytes(section_bytes_, std::byte{0x5a}), 0);
    section = section_->data();
  }

  std::span<std::byte> section_span() const { return {section, section_bytes_}; }
  std::vector<const std::byte*> all_sections() const {
    std::vector<const std::byte*> all{section};
    all.insert(all.end(), received.begin(), received.end());
    return all;
  }
  TopKOutputs outputs() const {
    TopKOutputs result;
    result.section = section_->to_host();
    for (const auto& residual : residuals_) {
      const auto values = to_floats(DType::kFloat32, residual->to_host());
      result.residual.insert(result.residual.end(), values.begin(), values.end());
    }
    for (const auto& out : outs_) {
      const Bytes bytes = out->to_host();
      result.decoded.insert(result.decoded.end(), bytes.begin(), bytes.end());
    }
    return result;
  }

  std::vector<TopKPiece> pieces;
  std::vector<TopKDecoder::OutPiece> out_pieces;
  std::vector<const std::byte*> received;
  std::byte* section;

 private:
  Memory* place(std::span<const std::byte> contents, int64_t misalignment) {
    memory_.push_back(std::make_unique<Memory>(contents, misalignment));
    return memory_.back().get();
  }

  size_t section_bytes_;
  Memory* section_;
  std::vector<Memory*> residuals_;
  std::vector<Memory*> outs_;
  std::vector<std::unique_ptr<Memory>> memory_;
};

inline TopKOutputs run_on_cpu(const TopKInputs& inputs) {
  const TopKMemory<HostMemory> memory(inputs);
  const TopKExecution execution{active_isa(), nullptr};
  TopKEncoder().encode(execution, inputs.dtype, memory.pieces, inputs.k, memory.received,
                       memory.section_span());
  TopKDecoder().decode(execution, inputs.dtype, memory.out_pieces, inputs.k, 0.5f,
                       memory.all_sections());
  return memory.outputs();
}

inline TopKOutputs run_on_device(CudaWorkspace& workspace, const TopKInputs& inputs) {
  const TopKMemory<DeviceMemory> memory(inputs);
  workspace.topk.encode(workspace, inputs.dtype, memory.pieces, inputs.k, memory.received,
                        memory.section);
  workspace.topk.decode(workspace, inputs.dtype, memory.out_pieces, inputs.k, 0.5f,
                        memory.all_sections());
  return memory.outputs();
}

// A section as a peer of the call would send it.
inline Bytes section_of(const std::vector<float>& gradient, int64_t k) {
  TopKInputs inputs;
  inputs.k = k;
  inputs.gradient = gradient;
  return run_on_cpu(inputs).section;
}

inline void check_same(const TopKOutputs& outputs, const TopKOutputs& expected) {
  CHECK(outputs.section == expected.section);
  CHECK(same_bits(outputs.residual, expected.residual));
  CHECK(outputs.decoded == expected.decoded);
}

inline void check_against_cpu(CudaWorkspace& workspace, const TopKInputs& inputs) {
  CAPTURE(inputs.gradient.size());
  CAPTURE(inputs.k);
  CAPTURE(static_cast<int>(inputs.dtype));
  CAPTURE(inputs.residual.empty());
  CAPTURE(inputs.received.size());
  CAPTURE(inputs.misalignment);
  const TopKOutputs expected = run_on_cpu(inputs);
#if FASTCOMM_CUDA_EMULATION
  using cuda_emulation::WarpOrder;
  cuda_emulation::set_warp_order(WarpOrder::kBackward);
  check_same(run_on_device(workspace, inputs), expected);
  cuda_emulation::set_warp_order(WarpOrder::kForward);
#endif
  check_same(run_on_device(workspace, inputs), expected);
}

inline void check_against_cpu(const TopKInputs& inputs) {
  CudaWorkspace workspace;
  workspace.allocate = allocate_device;
  check_against_cpu(workspace, inputs);
}

// `k` entries of `n` elements.
inline TopKInputs inputs_of(Values kind, int64_t n, int64_t k, uint64_t seed = 1) {
  TopKInputs inputs;
  inputs.k = k;
  inputs.gradient = random_values(kind, n, seed);
  inputs.residual = random_values(Values::kNormal, n, seed + 1000);
  return inputs;
}

inline void add_received(TopKInputs& inputs, int count, Values kind = Values::kNormal) {
  const auto n = static_cast<int64_t>(inputs.gradient.size());
  for (int i = 0; i < count; ++i) {
    const auto seed = static_cast<uint64_t>(500 + i);
    inputs.received.push_back(section_of(random_values(kind, n, seed), inputs.k));
  }
}

}  // namespace fastcomm::testing
