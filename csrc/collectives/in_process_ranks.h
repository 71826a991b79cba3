#pragma once
// Ranks as threads: runs a function on each rank of an in-process network.

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "collectives/in_process_transport.h"

namespace fastcomm {

// Runs run_rank(rank) on one thread per rank and returns each rank's error, if any. The first error
// aborts the network, so that no other rank waits for the failed one.
template <class RunRank>
std::vector<std::exception_ptr> errors_of_ranks(InProcessNetwork& network, RunRank&& run_rank,
                                                std::exception_ptr* first_error = nullptr) {
  std::vector<std::exception_ptr> errors(static_cast<size_t>(network.world_size()));
  std::mutex mutex;
  std::vector<std::jthread> threads;
  const auto run = [&](int rank) {
    try {
      run_rank(rank);
    } catch (...) {
      errors[static_cast<size_t>(rank)] = std::current_exception();
      {
        const std::lock_guard lock(mutex);
        if (first_error != nullptr && *first_error == nullptr) {
          *first_error = std::current_exception();
        }
      }
      network.abort();
    }
  };
  try {
    for (int rank = 0; rank < network.world_size(); ++rank) threads.emplace_back(run, rank);
  } catch (...) {
    network.abort();  // no thread can be had: those that run would wait for the missing ones
    throw;
  }
  threads.clear();
  return errors;
}

// The same, but throws the first error.
template <class RunRank>
void run_ranks(InProcessNetwork& network, RunRank&& run_rank) {
  std::exception_ptr first_error;
  errors_of_ranks(network, run_rank, &first_error);
  if (first_error != nullptr) std::rethrow_exception(first_error);
}

}  // namespace fastcomm
