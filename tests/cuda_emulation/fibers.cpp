#include "fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

namespace cuda_emulation {
namespace {

constexpr size_t kStackBytes = size_t{1} << 17;

// Stacks begin at different offsets: at the same one, their ends would all be in the same few lines
// of the cache.
constexpr size_t kLargestOffset = size_t{1} << 16;
constexpr size_t kOffsetStep = 1088;

[[noreturn]] void fail(const char* message) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u, thread %u)\n", message, blockIdx.x,
               threadIdx.x);
  std::abort();
}

// A context starts a fiber, once; from then on it jumps, which takes no system call. When its
// thread of a block is over, it waits to be one of the next block.
struct Fiber {
  jmp_buf here;
  bool has_started = false;
  std::unique_ptr<std::byte[]> stack;
};

// How far the thread has come that runs on a fiber.
struct Progress {
  int64_t exchanges = 0;  // that it took part in
  int64_t barriers = 0;
  bool is_over = false;
};

struct Warp {
  // Of this exchange and the one before: a lane is at most one ahead of the slowest.
  uint64_t values[2][kWarpLanes];
  int num_lanes = 0;
  int num_over = 0;
  int num_arrived = 0;    // in the current exchange
  int64_t exchanges = 0;  // complete
};

struct Block {
  std::vector<Fiber>* fibers = nullptr;
  std::vector<Progress> threads;
  std::vector<Warp> warps;
  jmp_buf scheduler;
  const std::function<void(int)>* body = nullptr;
  int current = 0;
  int num_over = 0;
  int num_arrived = 0;    // at the current barrier
  int64_t barriers = 0;   // complete
  int64_t num_steps = 0;  // of any kind, to see whether anything happens
};

thread_local Block* block = nullptr;
thread_local WarpOrder warp_order = WarpOrder::kForward;

Fiber& fiber() { return (*block->fibers)[static_cast<size_t>(block->current)]; }
Progress& progress() { return block->threads[static_cast<size_t>(block->current)]; }
Warp& warp_of(int thread) { return block->warps[static_cast<size_t>(thread / kWarpLanes)]; }
Warp& warp() { return warp_of(block->current); }

void yield() {
  if (_setjmp(fiber().here) == 0) _longjmp(block->scheduler, 1);
}

void complete_barrier() {
  if (block->num_arrived + block->num_over < static_cast<int>(block->threads.size())) return;
  if (block->num_arrived == 0) return;
  block->num_arrived = 0;
  ++block->barriers;
}

void run_fiber() {
  while (true) {
    (*block->body)(block->current);
    progress().is_over = true;
    ++block->num_over;
    ++block->num_steps;
    if (warp().num_arrived > 0) fail("a lane ended that the others of its warp wait for");
    ++warp().num_over;
    complete_barrier();
    yield();
  }
}

void start(Fiber& fiber) {
  const size_t offset = static_cast<size_t>(block->current) * kOffsetStep % kLargestOffset;
  fiber.stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes + kLargestOffset);
  fiber.has_started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get() + offset;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, run_fiber, 0);
  setcontext(&context);
}

void resume(int thread) {
  block->current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  if (_setjmp(block->scheduler) != 0) return;
  if (fiber().has_started) _longjmp(fiber().here, 1);
  start(fiber());
}

// Whether a thread is over, or waits for others.
bool is_stopped(int thread) {
  const Progress& its = block->threads[static_cast<size_t>(thread)];
  return its.is_over || its.barriers > block->barriers || its.exchanges > warp_of(thread).exchanges;
}

// Lets the lanes of a warp run until all of them wait for other warps, or are over.
void run_warp(int first, int end) {
  int64_t steps_before = -1;
  while (steps_before != block->num_steps) {
    steps_before = block->num_steps;
    for (int thread = first; thread < end; ++thread) {
      if (!is_stopped(thread)) resume(thread);
    }
  }
}

}  // namespace

void set_warp_order(WarpOrder order) { warp_order = order; }

void run_block(int num_threads, const std::function<void(int)>& body) {
  static thread_local std::vector<Fiber> fibers;  // kept for the next blocks
  const auto count = static_cast<size_t>(num_threads);
  if (fibers.size() < count) fibers.resize(count);
  Block here;
  here.body = &body;
  here.fibers = &fibers;
  here.threads.resize(count);
  const int num_warps = (num_threads + kWarpLanes - 1) / kWarpLanes;
  here.warps.resize(static_cast<size_t>(num_warps));
  block = &here;
  for (int thread = 0; thread < num_threads; ++thread) {
    ++here.warps[static_cast<size_t>(thread / kWarpLanes)].num_lanes;
  }
  int64_t steps_before = -1;
  while (here.num_over < num_threads) {
    if (steps_before == here.num_steps) fail("all threads wait for one another");
    steps_before = here.num_steps;
    for (int i = 0; i < num_warps; ++i) {
      const int warp = warp_order == WarpOrder::kForward ? i : num_warps - 1 - i;
      run_warp(warp * kWarpLanes, std::min(num_threads, (warp + 1) * kWarpLanes));
    }
  }
  block = nullptr;
}

int current_lane() { return block->current % kWarpLanes; }

void block_barrier() {
  const int64_t mine = ++progress().barriers;
  ++block->num_arrived;
  ++block->num_steps;
  complete_barrier();
  while (block->barriers < mine) yield();
}

const uint64_t* exchange_in_warp(uint64_t value) {
  Warp& my_warp = warp();
  const int64_t mine = ++progress().exchanges;
  if (my_warp.num_over > 0 || my_warp.num_lanes < kWarpLanes) {
    fail("a warp-wide operation without all lanes");
  }
  uint64_t* values = my_warp.values[mine % 2];
  values[current_lane()] = value;
  ++block->num_steps;
  if (++my_warp.num_arrived == kWarpLanes) {
    my_warp.num_arrived = 0;
    ++my_warp.exchanges;
  }
  while (my_warp.exchanges < mine) yield();
  return values;
}

}  // namespace cuda_emulation
