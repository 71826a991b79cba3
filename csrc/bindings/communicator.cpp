#include "bindings/communicator.h"

#include <pthread.h>

#include <algorithm>
#include <cfenv>
#include <utility>

#include "collectives/opening.h"

namespace fastcomm {
namespace {

// Tags of one lane: those of a schedule's messages, and the openings' above them.
constexpr Tag kTagsPerLane = kOpeningTag + 1;

// torch.set_flush_denormal() changes the mode of the thread that calls it and of those that it
// creates, and would lose small residuals.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&given_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&given_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;

 private:
  std::fenv_t given_;
};

}  // namespace

struct Communicator::Lane {
  Lane(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, int index)
      : index(index),
        transport(std::move(backends), static_cast<Tag>(index) * kTagsPerLane),
        openings(transport) {}

  const int index;
  C10dTransport transport;
  Openings openings;
  PayloadBuffers buffers;
  CodecWorkspace workspace;
  std::deque<Job> queue;
  bool is_busy = false;  // a thread runs a job of this lane
  std::thread thread;
};

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      FASTCOMM_FAIL("dtype " << tensor.scalar_type()
                             << " is not one of float32, bfloat16, float16");
  }
}

Communicator::Communicator(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, int num_lanes)
    : rank_(backends.empty() ? 0 : backends[0]->getRank()) {
  for (int index = 0; index < num_lanes; ++index) {
    lanes_.push_back(std::make_unique<Lane>(backends, index));
    Lane& lane = *lanes_.back();
    lane.thread = std::thread([this, &lane] { run_lane(lane); });
    const std::string name = "fastcomm-lane" + std::to_string(index);
    pthread_setname_np(lane.thread.native_handle(), name.c_str());
  }
}

Communicator::~Communicator() { close(); }

void Communicator::submit(Job job, bool caller_waits) {
  std::unique_lock lock(mutex_);
  FASTCOMM_CHECK(!closed_, "the communicator is closed");
  Lane& lane = *lanes_[job.id.bucket % lanes_.size()];
  if (caller_waits && !lane.is_busy && lane.queue.empty()) {
    lane.is_busy = true;
    lock.unlock();
    run_job(lane, job);
  } else {
    lane.queue.push_back(std::move(job));
    changed_.notify_all();
  }
}

void Communicator::close() {
  {
    std::unique_lock lock(mutex_);
    closed_ = true;
    changed_.notify_all();
    // Threads of callers, too, may be running jobs.
    changed_.wait(lock, [&] {
      return std::ranges::none_of(lanes_, [](const auto& lane) { return lane->is_busy; });
    });
  }
  for (const auto& lane : lanes_) {
    if (lane->thread.joinable()) lane->thread.join();
  }
  lanes_.clear();
}

void Communicator::abort() {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = "the process ends";
  }
  for (const auto& lane : lanes_) lane->transport.abort();
  close();
}

Measurements Communicator::measurements() const {
  const std::lock_guard lock(mutex_);
  return measurements_;
}

void Communicator::start_trace() {
  const std::lock_guard lock(mutex_);
  is_traced_ = true;
  trace_.clear();
}

std::vector<LaneEvent> Communicator::stop_trace() {
  const std::lock_guard lock(mutex_);
  is_traced_ = false;
  return std::exchange(trace_, {});
}

void Communicator::run_lane(Lane& lane) {
  while (true) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !lane.is_busy && (closed_ || !lane.queue.empty()); });
      if (lane.queue.empty()) return;
      job = std::move(lane.queue.front());
      lane.queue.pop_front();
      lane.is_busy = true;
    }
    run_job(lane, job);
  }
}

void Communicator::run_job(Lane& lane, const Job& job) {
  std::string failure;
  {
    const std::lock_guard lock(mutex_);
    failure = failure_;
  }
  std::exception_ptr error;
  try {
    FASTCOMM_CHECK(failure.empty(),
                   "an earlier synchronization failed, so that the ranks are out "
                   "of step; restart from a checkpoint. The failure: "
                       << failure);
    exchange(lane, job);
  } catch (const std::exception& caught) {
    error = std::current_exception();
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = caught.what();
  }
  {
    const std::lock_guard lock(mutex_);
    lane.is_busy = false;
    changed_.notify_all();
  }
  job.complete(error);
}

void Communicator::exchange(Lane& lane, const Job& job) {
  const DefaultFloatingPoint default_floating_point;
  BucketMemory memory{job.bucket.data_ptr(), dtype_of(job.bucket),
                      job.residual ? job.residual->data_ptr<float>() : nullptr, job.bucket.numel()};
  lane.workspace.threads = job.plan->threads;
  BucketCodec codec(job.plan->codec, memory, job.plan->runs, job.factor, rank_, lane.workspace);
  Measurements measurements;
  std::vector<TraceEvent> trace;
  Exchange exchange(codec, lane.transport, lane.buffers, measurements, job.id,
                    is_traced_ ? &trace : nullptr);
  const auto record = [&] {
    const std::lock_guard lock(mutex_);
    measurements_.wire_bytes += measurements.wire_bytes;
    measurements_.seconds_encode += measurements.seconds_encode;
    measurements_.seconds_decode += measurements.seconds_decode;
    measurements_.seconds_send += measurements.seconds_send;
    measurements_.seconds_wait += measurements.seconds_wait;
    for (const TraceEvent& event : trace) trace_.push_back({lane.index, job.id, event});
  };
  try {
    lane.openings.run(exchange, *job.plan->schedule);
  } catch (...) {
    record();  // a wait that failed is what one looks for
    throw;
  }
  record();
}

}  // namespace fastcomm
