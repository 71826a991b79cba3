#pragma once
// Runs all-reduces of buckets on native threads that never take the GIL.
//
// A *lane* has its own transport, buffers and thread. Bucket b runs on lane b modulo the number of
// lanes, on every rank: so several buckets are in flight, one encodes while another is on the wire,
// and the lanes of all ranks still do the same exchanges in the same order. A caller that waits
// anyway may lend its own thread to an idle lane.

#include <ATen/ATen.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bindings/c10d_transport.h"
#include "codecs/bucket_codec.h"
#include "collectives/schedules.h"

namespace fastcomm {

// How a bucket is synchronized: the same on every rank.
struct BucketPlan {
  CodecSpec codec;
  std::vector<Run> runs;
  const Schedule* schedule;
  std::shared_ptr<ThreadPool> threads;  // that help the lanes to encode and decode; may be null
};

// One all-reduce of one bucket.
struct Job {
  std::shared_ptr<const BucketPlan> plan;
  at::Tensor bucket;                   // contiguous CPU tensor; receives factor * sum
  std::optional<at::Tensor> residual;  // contiguous f32 CPU tensor of as many elements
  float factor;
  ExchangeId id;
  // Called on the thread that ran the job, without the GIL; null: success.
  std::function<void(const std::exception_ptr&)> complete;
};

// Something that a lane did for an exchange.
struct LaneEvent {
  int lane;
  ExchangeId exchange;
  TraceEvent event;
};

class Communicator {
 public:
  // `backends`: over the same ranks; each message uses one of them by its sender's rank. None for a
  // group of one rank.
  Communicator(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, int num_lanes);
  // Waits for what is under way. The caller must not hold the GIL.
  ~Communicator();

  int rank() const { return rank_; }

  // Runs the job on its lane's thread; or, if the caller will wait for it anyway and the lane is
  // idle, on this thread, which saves waking two threads. The caller must not hold the GIL.
  // Throws Error if the communicator is closed.
  void submit(Job job, bool caller_waits);

  // Waits for what is under way, ends the threads and lets go of the backends. The caller must not
  // hold the GIL: their destructors join threads that may be waiting for it.
  void close();

  // Ends what is under way with an error, then closes: for the end of the process, when the other
  // ranks may never answer. The caller must not hold the GIL.
  void abort();

  Measurements measurements() const;

  // Records what the lanes do from the next exchange on, and returns the record.
  void start_trace();
  std::vector<LaneEvent> stop_trace();

 private:
  struct Lane;
  void run_lane(Lane& lane);
  // Runs a job of a lane that was marked as busy.
  void run_job(Lane& lane, const Job& job);
  void exchange(Lane& lane, const Job& job);

  const int rank_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  mutable std::mutex mutex_;  // guards everything below and the lanes' queues
  std::condition_variable changed_;
  bool closed_ = false;
  std::string failure_;  // of the first exchange that failed; the ranks are out of step since
  Measurements measurements_;
  std::vector<LaneEvent> trace_;
  std::atomic<bool> is_traced_ = false;
};

DType dtype_of(const at::Tensor& tensor);

}  // namespace fastcomm
