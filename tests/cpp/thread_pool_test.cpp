// Threads that share the work of one call.

#include "core/thread_pool.h"

#include <atomic>
#include <barrier>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "doctest.h"

namespace fastcomm {
namespace {

using Counts = std::vector<std::atomic<int>>;

bool all_equal(const Counts& counts, int expected) {
  for (const auto& count : counts) {
    if (count != expected) return false;
  }
  return true;
}

TEST_CASE("every task is run once, and run() returns after the last") {
  for (const int num_threads : {1, 2, 3, 8}) {
    CAPTURE(num_threads);
    ThreadPool pool(num_threads);
    CHECK(pool.num_threads() == num_threads);
    for (const int64_t num_tasks : {0, 1, 2, 3, 7, 1000}) {
      CAPTURE(num_tasks);
      Counts counts(static_cast<size_t>(num_tasks));
      pool.run(num_tasks, [&](int64_t task) { ++counts[static_cast<size_t>(task)]; });
      REQUIRE(all_equal(counts, 1));
    }
  }
}

TEST_CASE("one thread: the tasks run on the caller's, in order") {
  ThreadPool pool(1);
  const auto caller = std::this_thread::get_id();
  std::vector<int64_t> tasks;
  pool.run(5, [&](int64_t task) {
    CHECK(std::this_thread::get_id() == caller);
    tasks.push_back(task);
  });
  CHECK(tasks == std::vector<int64_t>{0, 1, 2, 3, 4});
}

TEST_CASE("as many tasks as threads run at the same time") {
  for (const int num_threads : {1, 2, 3, 5}) {
    ThreadPool pool(num_threads);
    for (int repetition = 0; repetition < 20; ++repetition) {
      // Tasks wait for one another: one that had to wait for its turn would never come.
      std::barrier all_are_here(num_threads);
      pool.run(num_threads, [&](int64_t) { all_are_here.arrive_and_wait(); });
    }
  }
}

TEST_CASE("run() waits for a task of another thread that takes long") {
  ThreadPool pool(2);
  const auto caller = std::this_thread::get_id();
  for (int repetition = 0; repetition < 5; ++repetition) {
    std::barrier both_are_here(2);
    std::atomic<int> num_ended = 0;
    pool.run(2, [&](int64_t) {
      both_are_here.arrive_and_wait();
      if (std::this_thread::get_id() != caller) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
        while (std::chrono::steady_clock::now() < end) {
        }
      }
      ++num_ended;
    });
    CHECK(num_ended == 2);
  }
}

TEST_CASE("an exception of a task is thrown by run(), after all tasks have ended") {
  for (const int num_threads : {1, 2, 3}) {
    CAPTURE(num_threads);
    ThreadPool pool(num_threads);
    Counts counts(100);
    auto run = [&] {
      pool.run(100, [&](int64_t task) {
        ++counts[static_cast<size_t>(task)];
        if (task % 10 == 3) throw std::runtime_error("task " + std::to_string(task));
      });
    };
    CHECK_THROWS_WITH_AS(run(), doctest::Contains("task "), std::runtime_error);
    CHECK(all_equal(counts, 1));
    // The pool goes on as before.
    pool.run(100, [&](int64_t task) { ++counts[static_cast<size_t>(task)]; });
    CHECK(all_equal(counts, 2));
  }
}

TEST_CASE("several threads call run() at the same time, each gets its own tasks and errors") {
  for (const int num_threads : {1, 2, 3}) {
    CAPTURE(num_threads);
    ThreadPool pool(num_threads);
    constexpr int kNumCallers = 4;
    std::atomic<int> num_wrong = 0;
    {
      std::vector<std::jthread> callers;
      for (int caller = 0; caller < kNumCallers; ++caller) {
        callers.emplace_back([&, caller] {
          for (int call = 0; call < 100; ++call) {
            const bool fails = (call + caller) % 3 == 0;
            bool has_failed = false;
            Counts counts(static_cast<size_t>(1 + call % 7));
            try {
              pool.run(1 + call % 7, [&](int64_t task) {
                ++counts[static_cast<size_t>(task)];
                if (fails && task == 0) throw caller;
              });
            } catch (const int error) {
              has_failed = error == caller;
            }
            num_wrong += !all_equal(counts, 1) || has_failed != fails;
          }
        });
      }
    }
    CHECK(num_wrong == 0);
  }
}

TEST_CASE("parts cover all items once and begin at multiples of their size") {
  for (const int num_threads : {0, 1, 2, 3}) {  // 0: no pool
    const auto pool = num_threads > 0 ? std::make_unique<ThreadPool>(num_threads) : nullptr;
    for (const int64_t num_items : {0, 1, 9, 10, 11, 100, 101}) {
      CAPTURE(num_threads);
      CAPTURE(num_items);
      Counts counts(static_cast<size_t>(num_items));
      std::atomic<int> num_parts = 0;
      run_in_parts(pool.get(), num_items, 10, [&](int64_t begin, int64_t end) {
        ++num_parts;
        if (begin % 10 != 0 || end > num_items) throw std::runtime_error("a wrong part");
        for (int64_t item = begin; item < end; ++item) ++counts[static_cast<size_t>(item)];
      });
      CHECK(all_equal(counts, 1));
      const bool is_cut = num_threads > 1 && num_items > 10;
      CHECK(num_parts == (is_cut ? (num_items + 9) / 10 : 1));
    }
  }
}

}  // namespace
}  // namespace fastcomm
