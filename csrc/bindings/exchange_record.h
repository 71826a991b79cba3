#pragma once
// What a communicator's exchanges did, summed, and event by event while somebody asks.

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "collectives/exchange.h"

namespace fastcomm {

// Something that a lane did for an exchange.
struct LaneEvent {
  int lane;
  ExchangeId exchange;
  TraceEvent event;
};

// For several threads.
class ExchangeRecord {
 public:
  bool is_traced() const { return is_traced_; }

  // Adds one exchange's; `trace` may be of none.
  void add(const Measurements& measurements, const std::vector<TraceEvent>& trace, int lane,
           ExchangeId id) {
    if (id.bucket == kSettings) return;
    const std::lock_guard lock(mutex_);
    sum_.wire_bytes += measurements.wire_bytes;
    sum_.seconds_encode += measurements.seconds_encode;
    sum_.seconds_decode += measurements.seconds_decode;
    sum_.seconds_send += measurements.seconds_send;
    sum_.seconds_wait += measurements.seconds_wait;
    for (const TraceEvent& event : trace) trace_.push_back({lane, id, event});
  }

  Measurements measurements() const {
    const std::lock_guard lock(mutex_);
    return sum_;
  }

  // Traces from the next exchange on, and returns what was traced.
  void start_trace() {
    const std::lock_guard lock(mutex_);
    is_traced_ = true;
    trace_.clear();
  }
  std::vector<LaneEvent> stop_trace() {
    const std::lock_guard lock(mutex_);
    is_traced_ = false;
    return std::exchange(trace_, {});
  }

 private:
  mutable std::mutex mutex_;
  Measurements sum_;
  std::vector<LaneEvent> trace_;
  std::atomic<bool> is_traced_ = false;
};

}  // namespace fastcomm
