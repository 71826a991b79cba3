#pragma once
// What c10d's work objects lack.

#include <chrono>
#include <exception>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace fastcomm {

// For waits that only an abort ends: when one of gloo's times out, it closes all connections.
inline constexpr std::chrono::milliseconds kForever = std::chrono::hours(24 * 365);

// Makes a wait for `work`, one under way or else the next one, return false.
inline void abort_quietly(c10d::Work& work) {
  try {
    work.abort();
  } catch (const std::exception&) {
    // Not every backend can abort a message; the exchange has failed already.
  }
}

}  // namespace fastcomm
