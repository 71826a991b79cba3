#pragma once
// Top-k calls on the emulated device, and the same on the CPU.

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <vector>

#include "codecs/cuda/workspace.h"
#include "codecs/sparse/topk.h"
#include "core/isa.h"
#include "doctest.h"
#include "values.h"

namespace fastcomm::testing {

// Memory that ends `slack` bytes before a page that must not be touched.
inline std::shared_ptr<std::byte> guarded_memory(size_t bytes, size_t slack = 0) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t usable = (bytes + slack + page - 1) / page * page;
  void* const pages =
      mmap(nullptr, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<std::byte*>(pages);
  mprotect(begin + usable, page, PROT_NONE);
  std::memset(begin, 0xa5, usable);
  return {begin + usable - slack - bytes,
          [begin, usable, page](std::byte*) { munmap(begin, usable + page); }};
}

inline std::shared_ptr<std::byte> guarded_copy(const void* from, size_t bytes, size_t slack = 0) {
  auto memory = guarded_memory(bytes, slack);
  if (bytes > 0) std::memcpy(memory.get(), from, bytes);
  return memory;
}

inline CudaWorkspace guarded_workspace() {
  CudaWorkspace workspace;
  workspace.allocate = [](int64_t bytes) {
    const auto size = static_cast<size_t>(bytes);
    return guarded_memory(size, (256 - size % 256) % 256);
  };
  return workspace;
}

struct TopKInputs {
  DType dtype = DType::kFloat32;
  int64_t k = 1;
  std::vector<float> gradient = {};
  std::vector<float> residual = {};  // empty: no error feedback
  std::vector<Bytes> received = {};
  std::vector<int64_t> cuts = {};  // where pieces begin, but for the first
  size_t slack = 0;                // elements behind each piece: it begins misaligned
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
class TopKMemory {
 public:
  explicit TopKMemory(const TopKInputs& inputs) : inputs_(inputs) {
    const size_t element_bytes = dtype_bytes(inputs.dtype);
    const Bytes gradient = to_dtype(inputs.dtype, inputs.gradient);
    for_each_piece(inputs, [&](int64_t first, int64_t count) {
      const auto size = static_cast<size_t>(count);
      const size_t begin = static_cast<size_t>(first) * element_bytes;
      auto piece =
          guarded_copy(gradient.data() + begin, size * element_bytes, inputs.slack * element_bytes);
      memory_.push_back(piece);
      float* residual = nullptr;
      if (!inputs.residual.empty()) {
        auto memory = guarded_copy(inputs.residual.data() + first, size * sizeof(float),
                                   inputs.slack * sizeof(float));
        memory_.push_back(memory);
        residual = reinterpret_cast<float*>(memory.get());
      }
      auto out = guarded_memory(size * element_bytes, inputs.slack * element_bytes);
      memory_.push_back(out);
      pieces.push_back({piece.get(), residual, count});
      out_pieces.push_back({out.get(), count});
    });
    for (const Bytes& section : inputs.received) {
      memory_.push_back(guarded_copy(section.data(), section.size()));
      received.push_back(memory_.back().get());
    }
    const auto n = static_cast<int64_t>(inputs.gradient.size());
    section_bytes_ = static_cast<size_t>(topk_section_bytes(inputs.k, n));
    memory_.push_back(guarded_memory(section_bytes_));
    section = memory_.back().get();
  }

  std::span<std::byte> section_span() const { return {section, section_bytes_}; }
  std::vector<const std::byte*> all_sections() const {
    std::vector<const std::byte*> all{section};
    all.insert(all.end(), received.begin(), received.end());
    return all;
  }
  TopKOutputs outputs() const {
    TopKOutputs result;
    result.section.assign(section, section + section_bytes_);
    for (const TopKPiece& piece : pieces) {
      if (piece.residual == nullptr) continue;
      result.residual.insert(result.residual.end(), piece.residual,
                             piece.residual + piece.num_elements);
    }
    for (const auto& piece : out_pieces) {
      const auto* bytes = static_cast<const std::byte*>(piece.out);
      result.decoded.insert(
          result.decoded.end(), bytes,
          bytes + static_cast<size_t>(piece.num_elements) * dtype_bytes(inputs_.dtype));
    }
    return result;
  }

  std::vector<TopKPiece> pieces;
  std::vector<TopKDecoder::OutPiece> out_pieces;
  std::vector<const std::byte*> received;
  std::byte* section;

 private:
  const TopKInputs& inputs_;
  size_t section_bytes_;
  std::vector<std::shared_ptr<std::byte>> memory_;
};

inline TopKOutputs run_on_cpu(const TopKInputs& inputs) {
  const TopKMemory memory(inputs);
  const TopKExecution execution{active_isa(), nullptr};
  TopKEncoder().encode(execution, inputs.dtype, memory.pieces, inputs.k, memory.received,
                       memory.section_span());
  TopKDecoder().decode(execution, inputs.dtype, memory.out_pieces, inputs.k, 0.5f,
                       memory.all_sections());
  return memory.outputs();
}

inline TopKOutputs run_on_device(CudaWorkspace& workspace, const TopKInputs& inputs) {
  const TopKMemory memory(inputs);
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
  CAPTURE(inputs.slack);
  const TopKOutputs expected = run_on_cpu(inputs);
  using cuda_emulation::WarpOrder;
  for (const auto order : {WarpOrder::kForward, WarpOrder::kBackward}) {
    cuda_emulation::set_warp_order(order);
    check_same(run_on_device(workspace, inputs), expected);
  }
  cuda_emulation::set_warp_order(WarpOrder::kForward);
}

inline void check_against_cpu(const TopKInputs& inputs) {
  CudaWorkspace workspace = guarded_workspace();
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
