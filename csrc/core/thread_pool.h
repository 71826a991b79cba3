#pragma once
// Threads that share the work of one call.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

namespace fastcomm {

// Several threads may call run() at the same time; they share the pool's threads. Slices follow one
// another closely, and waking a thread takes as long as a tenth of a slice: a thread with nothing
// to do looks around for a moment before it goes to sleep.
class ThreadPool {
 public:
  // `num_threads` counts the thread that calls run(): with 1 there are no others.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(0) .. task(num_tasks - 1), each once, in any order, on this and the pool's threads,
  // and returns when all have returned. If tasks throw, the exception of one of them is thrown.
  void run(int64_t num_tasks, const std::function<void(int64_t)>& task);

 private:
  struct Call {
    const std::function<void(int64_t)>& task;
    int64_t num_tasks;
    int64_t num_started = 0;
    std::atomic<int64_t> num_ended = 0;
    std::exception_ptr error;
  };
  void work();
  // Runs one task of `call`; `lock` is held before and after.
  void run_one(Call& call, std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable started_;     // there is a call, or the end
  std::condition_variable ended_;       // a task has ended
  std::list<Call*> calls_;              // those with tasks that have not started
  std::atomic<int64_t> num_calls_ = 0;  // of them
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

// Cuts the numbers 0 .. num_items - 1 in parts of about `items_per_task` and calls task(begin, end)
// for each, on the threads of `pool`; without one (nullptr), in a single part on this thread.
template <class Task>
void run_in_parts(ThreadPool* pool, int64_t num_items, int64_t items_per_task, const Task& task) {
  if (pool == nullptr || pool->num_threads() == 1 || num_items <= items_per_task) {
    task(int64_t{0}, num_items);
    return;
  }
  const int64_t num_tasks = (num_items + items_per_task - 1) / items_per_task;
  pool->run(num_tasks, [&](int64_t index) {
    const int64_t begin = index * items_per_task;
    const int64_t end = begin + items_per_task;
    task(begin, end < num_items ? end : num_items);
  });
}

}  // namespace fastcomm
