#include "bindings/communicator.h"

#include <pthread.h>

#include <cfenv>

#include "collectives/announcement.h"

namespace fastcomm {
namespace {

// Tags of one lane: those of a schedule's messages, and the announcement's above them.
constexpr Tag kTagsPerLane = kAnnouncementTag + 1;

}  // namespace

struct Communicator::Lane {
  Lane(c10::intrusive_ptr<c10d::Backend> backend, int index)
      : transport(std::move(backend), static_cast<Tag>(index) * kTagsPerLane) {}

  C10dTransport transport;
  PayloadBuffers buffers;
  CodecWorkspace workspace;
  std::deque<Job> queue;
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

Communicator::Communicator(c10::intrusive_ptr<c10d::Backend> backend, int num_lanes)
    : rank_(backend ? backend->getRank() : 0) {
  for (int index = 0; index < num_lanes; ++index) {
    lanes_.push_back(std::make_unique<Lane>(backend, index));
    Lane& lane = *lanes_.back();
    lane.thread = std::thread([this, &lane] { run_lane(lane); });
    const std::string name = "fastcomm-lane" + std::to_string(index);
    pthread_setname_np(lane.thread.native_handle(), name.c_str());
  }
}

Communicator::~Communicator() { close(); }

void Communicator::submit(Job job) {
  const std::lock_guard lock(mutex_);
  FASTCOMM_CHECK(!closed_, "the communicator is closed");
  lanes_[job.id.bucket % lanes_.size()]->queue.push_back(std::move(job));
  changed_.notify_all();
}

void Communicator::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
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

void Communicator::run_lane(Lane& lane) {
  // A thread inherits the floating-point mode of its creator; torch.set_flush_denormal() would
  // lose small residuals here.
  std::fesetenv(FE_DFL_ENV);
  while (true) {
    std::string failure;
    Job job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return closed_ || !lane.queue.empty(); });
      if (lane.queue.empty()) return;
      job = std::move(lane.queue.front());
      lane.queue.pop_front();
      failure = failure_;
    }
    std::exception_ptr error;
    try {
      FASTCOMM_CHECK(failure.empty(),
                     "an earlier synchronization failed, so that the ranks are out "
                     "of step; restart from a checkpoint. The failure: "
                         << failure);
      run_job(lane, job);
    } catch (const std::exception& caught) {
      error = std::current_exception();
      const std::lock_guard lock(mutex_);
      if (failure_.empty()) failure_ = caught.what();
    }
    job.complete(error);
  }
}

void Communicator::run_job(Lane& lane, const Job& job) {
  BucketMemory memory{job.bucket.data_ptr(), dtype_of(job.bucket),
                      job.residual ? job.residual->data_ptr<float>() : nullptr, job.bucket.numel()};
  lane.workspace.threads = job.plan->threads;
  BucketCodec codec(job.plan->codec, memory, job.plan->runs, job.factor, rank_, lane.workspace);
  Measurements measurements;
  Exchange exchange(codec, lane.transport, lane.buffers, measurements, job.id);
  compare_with_neighbours(exchange, job.plan->schedule->name);
  job.plan->schedule->run(exchange);
  const std::lock_guard lock(mutex_);
  measurements_.wire_bytes += measurements.wire_bytes;
  measurements_.seconds_encode += measurements.seconds_encode;
  measurements_.seconds_decode += measurements.seconds_decode;
  measurements_.seconds_wait += measurements.seconds_wait;
}

}  // namespace fastcomm
