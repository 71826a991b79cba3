#pragma once
// The threads of one emulated block; see cuda_runtime.h.

#include <cstdint>
#include <functional>

namespace cuda_emulation {

inline constexpr int kWarpLanes = 32;

enum class WarpOrder { kForward, kBackward };

// Of the launches that this thread makes from now on: which warp runs ahead of the others.
void set_warp_order(WarpOrder order);

// Runs body(thread) for the threads 0 .. num_threads - 1 of a block, as fibers of this thread.
// Aborts the process, with a message, if they wait for what never comes.
void run_block(int num_threads, const std::function<void(int)>& body);

// All for the fiber that calls them.
void block_barrier();
// Shows `value` to the other lanes of the warp, waits for theirs, and returns all of them. They are
// valid until the fiber's next call.
const uint64_t* exchange_in_warp(uint64_t value);
int current_lane();

}  // namespace cuda_emulation
