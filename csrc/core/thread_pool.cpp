#include "core/thread_pool.h"

#include <utility>

namespace fastcomm {

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
  started_.notify_all();
  while (call.num_started < call.num_tasks) run_one(call, lock);
  ended_.wait(lock, [&] { return call.num_ended == call.num_tasks; });
  if (call.error) std::rethrow_exception(call.error);
}

void ThreadPool::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    started_.wait(lock, [&] { return closed_ || !calls_.empty(); });
    if (calls_.empty()) return;
    run_one(*calls_.front(), lock);
  }
}

void ThreadPool::run_one(Call& call, std::unique_lock<std::mutex>& lock) {
  const int64_t index = call.num_started++;
  if (call.num_started == call.num_tasks) calls_.remove(&call);
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
