#include "core/thread_pool.h"

#include <cfenv>
#include <chrono>
#include <utility>

namespace fastcomm {
namespace {

// Returns when `condition` holds, or after a moment: about what it takes to wake a thread.
template <class Condition>
void spin_until(Condition&& condition) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(100);
  while (!condition() && Clock::now() < end) {
    for (int i = 0; i < 32; ++i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  started_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(int64_t num_tasks, const std::function<void(int64_t)>& task) {
  if (num_tasks == 0) return;
  Call call{task, num_tasks, 0, 0, nullptr};
  std::unique_lock lock(mutex_);
  calls_.push_back(&call);
  ++num_calls_;
  started_.notify_all();
  while (call.num_started < call.num_tasks) run_one(call, lock);
  lock.unlock();
  spin_until([&] { return call.num_ended == call.num_tasks; });
  lock.lock();
  ended_.wait(lock, [&] { return call.num_ended == call.num_tasks; });
  if (call.error) std::rethrow_exception(call.error);
}

void ThreadPool::work() {
  // A thread inherits the mode of its creator; torch.set_flush_denormal() would lose small
  // residuals here.
  std::fesetenv(FE_DFL_ENV);
  while (true) {
    spin_until([&] { return num_calls_ > 0; });
    std::unique_lock lock(mutex_);
    started_.wait(lock, [&] { return closed_ || !calls_.empty(); });
    if (calls_.empty()) return;
    while (!calls_.empty()) run_one(*calls_.front(), lock);
  }
}

void ThreadPool::run_one(Call& call, std::unique_lock<std::mutex>& lock) {
  const int64_t index = call.num_started++;
  if (call.num_started == call.num_tasks) {
    calls_.remove(&call);
    --num_calls_;
  }
  lock.unlock();
  std::exception_ptr error;
  try {
    call.task(index);
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  if (error && !call.error) call.error = error;
  // The call may end, and its memory with it, as soon as the lock is released.
  if (++call.num_ended == call.num_tasks) ended_.notify_all();
}

}  // namespace fastcomm
