#pragma once
// Runs all-reduces of buckets on native threads that never take the GIL.
//
// A *lane* has its own transport, buffers and thread. Bucket b runs on lane b modulo the number of
// lanes, on every rank: so several buckets are in flight, one encodes while another is on the wire,
// and the lanes of all ranks still do the same exchanges in the same order. A caller that waits
// anyway may lend its own thread to an idle lane.
//
// Buckets may be on the CPU or on a GPU, on each rank as it likes: messages are in host memory, and
// a lane has a stream for each GPU whose buckets it gets.

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <unistd.h>

#include <chrono>
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

#include "bindings/bucket_plan.h"
#include "bindings/c10d_transport.h"
#include "bindings/device_codecs.h"
#include "bindings/exchange_record.h"

namespace fastcomm {

// One all-reduce of one bucket.
struct Job {
  std::shared_ptr<const BucketPlan> plan;
  BucketTensors tensors;  // the bucket receives factor * sum
  Momentum momentum;      // of the velocity, if there is one
  float factor;
  ExchangeId id;
  // Called on the thread that ran the job, without the GIL; null: success. On a GPU the bucket then
  // is complete on the current stream.
  std::function<void(const std::exception_ptr&)> complete;
  // Set by submit():
  std::optional<c10::Event> ready = {};  // on a GPU: when the bucket may be read
  Place place = {};                      // among all jobs
};

class Communicator {
 public:
  // `backends`: over the same ranks; each message uses one of them by its sender's rank. None for a
  // group of one rank. `timeout`: how long to wait for another rank's message.
  Communicator(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, int num_lanes,
               std::chrono::milliseconds timeout);
  // Ends what is under way with an error, unless it is complete in a moment: after a failure
  // elsewhere in this process, the other ranks may do something else for as long as they like. The
  // caller must not hold the GIL: the destructors of backends join threads that may wait for it.
  ~Communicator();

  int rank() const { return connections_.rank(); }

  // Runs the job on its lane's thread; or, if the caller will wait for it anyway, the lane is idle
  // and the bucket on the CPU, on this thread, which saves waking two threads. On a GPU the job
  // comes after what is enqueued on the current stream. The caller must not hold the GIL.
  // Throws Error if the communicator is closed.
  void submit(Job job, bool caller_waits);

  // Ends what is under way with an error, and all threads, and lets go of the backends: for the end
  // of the process, when the other ranks may never answer. The caller must not hold the GIL.
  void abort();

  // Whether a fork copied it from another process, in which its threads are.
  bool is_inherited() const { return ::getpid() != process_; }

  // Throws PeerError if `peer` has ended, or what became of an exchange that failed.
  void check(int peer) const { connections_.check(peer); }

  // What the ranks do between exchanges has failed: tells the others. Exchanges that were submitted
  // before go on, later ones fail. Of no effect after another failure.
  void fail(const std::string& text);

  ExchangeRecord& record() { return record_; }
  const ExchangeRecord& record() const { return record_; }

 private:
  struct Lane;
  // Waits for what is under way, and ends the threads.
  void close();
  // With the lock.
  bool is_idle() const;
  void run_lane(Lane& lane);
  // Runs a job of a lane that was marked as busy.
  void run_job(Lane& lane, Job& job);
  // Throws with the place where it failed in `place`.
  void exchange(Lane& lane, const Job& job, std::string& place);

  const pid_t process_ = ::getpid();
  Connections connections_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  ExchangeRecord record_;
  std::mutex mutex_;  // guards everything below and the lanes' queues
  std::condition_variable changed_;
  Place num_submitted_;  // jobs, by lane
  bool closed_ = false;
};

}  // namespace fastcomm
