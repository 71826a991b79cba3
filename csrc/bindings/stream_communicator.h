#pragma once
// Runs all-reduces of buckets on a GPU over NCCL. No thread and no wait: the caller's thread
// enqueues everything, kernels on a stream of their own and messages on NCCL's.
//
// Bucket b uses lane b modulo their number, with its own stream and memory: one bucket encodes
// while another is on the wire. NCCL executes the messages of all lanes in the order of the calls,
// which is the same on every rank.
//
// The ranks' first messages say nothing about what they are about to do (opening.h): the host would
// have to wait for them. Callers compare notes before they do something new; a device checks what
// it receives, and what it finds is reported by the calls that follow.
//
// Can be captured in a CUDA graph, after calls with the same buckets on the same lanes, which keep
// their memory from then on. What a graph replays has the step number of its capture. Wait for a
// replay before another exchange on the same lane: they share memory.

#include <ATen/ATen.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "bindings/bucket_plan.h"
#include "bindings/device_codecs.h"
#include "bindings/exchange_record.h"
#include "bindings/nccl_groups.h"

namespace fastcomm {

class StreamCommunicator {
 public:
  // `backend`: NCCL, used by nobody else; nullptr for a group of one rank.
  StreamCommunicator(c10::intrusive_ptr<c10d::Backend> backend, c10::Device device);
  // Ends what is enqueued, unless it is complete in a moment. The caller must not hold the GIL.
  ~StreamCommunicator();

  int rank() const { return groups_.rank(); }
  c10::Device device() const { return device_; }

  // Enqueues bucket = factor * sum, after what is enqueued on the caller's current stream;
  // `momentum` is of the velocity, if there is one. Returns the stream on which that happens.
  // Throws PayloadError if a device found an earlier payload wrong, Error if something else failed
  // earlier: the ranks are out of step since.
  c10::Stream all_reduce(const BucketTensors& tensors, const Momentum& momentum,
                         const BucketPlan& plan, float factor, ExchangeId id);

  // Seconds are the host's, that it took to enqueue.
  ExchangeRecord& record() { return record_; }
  const ExchangeRecord& record() const { return record_; }

  // Waits until what is enqueued has run on this rank; false if something failed, or it takes
  // longer. Other ranks may still need this one to pass on what it sent. The caller must not hold
  // the GIL.
  bool finish(double seconds);

  // Ends what is under way. The caller must not hold the GIL.
  void abort();

 private:
  struct Lane {
    std::unique_ptr<DeviceCodecs> codecs;
    PayloadBuffers buffers;
  };

  void exchange(Lane& lane, int lane_index, const BucketTensors& tensors, const Momentum& momentum,
                const BucketPlan& plan, float factor, ExchangeId id);
  // With the lock, or when nobody else uses the object.
  bool is_done_within(double seconds) const;
  void abort_backend();

  const c10::Device device_;
  c10::intrusive_ptr<c10d::Backend> backend_;
  NcclGroups groups_;
  std::shared_ptr<FailureRecord> failures_;
  ExchangeRecord record_;
  std::atomic<bool> is_aborted_ = false;
  std::mutex mutex_;                          // guards the rest
  std::vector<std::unique_ptr<Lane>> lanes_;  // none: closed
  std::string failure_;                       // of the first exchange that failed
};

}  // namespace fastcomm
