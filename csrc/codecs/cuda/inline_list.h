#pragma once
// Lists that kernels are given: short ones travel with the launch, long ones as device tables.

#include <algorithm>
#include <cstdint>
#include <span>

#include "codecs/cuda/workspace.h"
#include "core/host_device.h"

namespace fastcomm {

template <class T, int kMostInline>
struct InlineList {
  InlineList() = default;
  InlineList(CudaWorkspace& workspace, std::span<const T> items)
      : size(static_cast<int>(items.size())) {
    if (size <= kMostInline) {
      std::copy(items.begin(), items.end(), inline_items);
    } else {
      table = workspace.tables.upload(workspace.allocate, workspace.stream, items);
    }
  }
  FASTCOMM_HOST_DEVICE const T& operator[](int index) const {
    return size <= kMostInline ? inline_items[index] : table[index];
  }

  T inline_items[kMostInline] = {};
  const T* table = nullptr;
  int size = 0;
};

}  // namespace fastcomm
