#include "bindings/stream_communicator.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "core/check.h"

namespace fastcomm {
namespace {

constexpr int kNumLanes = 2;

// How long exchanges that nobody waits for any more have to complete.
constexpr double kSecondsToComplete = 0.5;

}  // namespace

StreamCommunicator::StreamCommunicator(c10::intrusive_ptr<c10d::Backend> backend,
                                       c10::Device device)
    : device_(device),
      backend_(backend),
      groups_(std::move(backend), device),
      failures_(make_failure_record(device)) {
  for (int i = 0; i < kNumLanes; ++i) {
    auto lane = std::make_unique<Lane>();
    lane->codecs = make_device_codecs(side_stream(device), failures_);
    lane->buffers.take_memory_from(
        [codecs = lane->codecs.get()](int64_t bytes) { return codecs->allocate(bytes); });
    lanes_.push_back(std::move(lane));
  }
}

StreamCommunicator::~StreamCommunicator() {
  // A rank that is gone, or does something else, would be waited for.
  if (!is_done_within(kSecondsToComplete)) abort_backend();
  try {
    for (const auto& lane : lanes_) lane->codecs->synchronize();
  } catch (const std::exception&) {
    // The device has failed; who uses it next is told.
  }
  abort_backend();
}

bool StreamCommunicator::finish(double seconds) {
  const std::lock_guard lock(mutex_);
  return failure_.empty() && is_done_within(seconds);
}

bool StreamCommunicator::is_done_within(double seconds) const {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  try {
    while (!std::ranges::all_of(lanes_, [](const auto& lane) { return lane->codecs->is_done(); })) {
      if (Clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  } catch (const std::exception&) {
    return false;  // the device has failed; who uses it next is told
  }
  return true;
}

void StreamCommunicator::abort() {
  abort_backend();  // first: a call that holds the lock may be waiting for a rank that is gone
  const std::lock_guard lock(mutex_);
  lanes_.clear();
}

void StreamCommunicator::abort_backend() {
  if (is_aborted_.exchange(true)) return;
  try {
    // Not shutdown(), for which the ranks would have to come at the same time.
    if (backend_) backend_->abort();
  } catch (const std::exception&) {
    // It is given up anyway.
  }
}

c10::Stream StreamCommunicator::all_reduce(const BucketTensors& tensors, const Momentum& momentum,
                                           const BucketPlan& plan, float factor, ExchangeId id) {
  const c10::Device device = tensors.bucket.device();
  FASTCOMM_CHECK(device == device_,
                 "the tensor is on " << device << ", but the ranks are connected for " << device_);
  const std::lock_guard lock(mutex_);
  FASTCOMM_CHECK(!lanes_.empty(), "the communicator is closed");
  FASTCOMM_CHECK(failure_.empty(),
                 "an earlier synchronization failed, so that the ranks are out of step; restart "
                 "from a checkpoint. The failure: "
                     << failure_);
  const int index = id.bucket % kNumLanes;
  Lane& lane = *lanes_[static_cast<size_t>(index)];
  try {
    failures_->check();
    exchange(lane, index, tensors, momentum, plan, factor, id);
  } catch (const std::exception& error) {
    failure_ = error.what();
    throw;
  }
  return lane.codecs->stream();
}

void StreamCommunicator::exchange(Lane& lane, int lane_index, const BucketTensors& tensors,
                                  const Momentum& momentum, const BucketPlan& plan, float factor,
                                  ExchangeId id) {
  const c10::Stream callers = current_stream(device_);
  const c10::Stream stream = lane.codecs->stream();
  const c10::StreamGuard guard(stream);
  c10::Event ready(device_.type());  // destroyed under the guard, on its own device
  ready.record(callers);
  ready.block(stream);
  lane.codecs->keep_memory_if_capturing();

  const BucketMemory memory = tensors.memory();
  const auto codec =
      lane.codecs->stream_codec(plan.codecs, memory, plan.runs, factor, groups_.rank());
  Measurements measurements;
  std::vector<TraceEvent> trace;
  PairedTransport transport(groups_);
  Exchange exchange(*codec, transport, lane.buffers, measurements, id,
                    record_.is_traced() ? &trace : nullptr);
  // Before anything uses them: also if this fails half-way, their memory must stay until then.
  tensors.record_stream(stream);
  if (tensors.velocity) lane.codecs->accumulate_velocity(memory, momentum);
  plan.schedule->run(exchange);
  record_.add(measurements, trace, lane_index, id);
}

}  // namespace fastcomm
