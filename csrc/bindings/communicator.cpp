#include "bindings/communicator.h"

#include <c10/core/StreamGuard.h>
#include <pthread.h>

#include <algorithm>
#include <map>
#include <utility>

#include "bindings/default_floating_point.h"
#include "bindings/device_codecs.h"
#include "collectives/opening.h"

namespace fastcomm {
namespace {

// Tags of one lane: those of a schedule's messages, and the openings' above them.
constexpr Tag kTagsPerLane = kOpeningTag + 1;

// How long exchanges that nobody waits for any more have to complete.
constexpr std::chrono::milliseconds kTimeToComplete{500};

}  // namespace

struct Communicator::Lane {
  Lane(Connections& connections, int index)
      : index(index),
        transport(connections, static_cast<size_t>(index), static_cast<Tag>(index) * kTagsPerLane),
        openings(transport) {}

  DeviceCodecs& codecs_on(c10::Device device);

  const int index;
  C10dTransport transport;
  Openings openings;
  PayloadBuffers buffers;
  CodecWorkspace workspace;
  std::map<c10::DeviceIndex, std::unique_ptr<DeviceCodecs>> devices;  // made when first needed
  std::deque<Job> queue;
  bool is_busy = false;  // a thread runs a job of this lane
  std::thread thread;
};

DeviceCodecs& Communicator::Lane::codecs_on(c10::Device device) {
  auto& codecs = devices[device.index()];
  if (codecs == nullptr) {
    codecs = make_device_codecs(side_stream(device), nullptr);
    if (devices.size() == 1) buffers.take_memory_from(allocate_pinned);
  }
  return *codecs;
}

Communicator::Communicator(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, int num_lanes,
                           std::chrono::milliseconds timeout)
    : connections_(std::move(backends), static_cast<size_t>(num_lanes),
                   static_cast<Tag>(num_lanes) * kTagsPerLane, timeout),
      num_submitted_(static_cast<size_t>(num_lanes)) {
  try {
    for (int index = 0; index < num_lanes; ++index) {
      lanes_.push_back(std::make_unique<Lane>(connections_, index));
      Lane& lane = *lanes_.back();
      lane.thread = std::thread([this, &lane] { run_lane(lane); });
      const std::string name = "fastcomm-lane" + std::to_string(index);
      pthread_setname_np(lane.thread.native_handle(), name.c_str());
    }
  } catch (...) {
    close();
    throw;
  }
}

Communicator::~Communicator() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kTimeToComplete, [&] { return is_idle(); });
  }
  abort();
}

bool Communicator::is_idle() const {
  return std::ranges::none_of(
      lanes_, [](const auto& lane) { return lane->is_busy || !lane->queue.empty(); });
}

void Communicator::submit(Job job, bool caller_waits) {
  const c10::Device device = job.tensors.bucket.device();
  if (!device.is_cpu()) {
    const c10::Stream stream = current_stream(device);
    FASTCOMM_CHECK(!is_capturing(stream),
                   "an all-reduce over gloo waits for the network and cannot be captured in a CUDA "
                   "graph; use a process group of NCCL, or leave it out of the graph");
    job.ready.emplace(device.type()).record(stream);
  }
  std::unique_lock lock(mutex_);
  FASTCOMM_CHECK(!closed_, "the communicator is closed");
  const size_t index = job.id.bucket % lanes_.size();
  Lane& lane = *lanes_[index];
  job.place = num_submitted_;
  ++num_submitted_[index];
  if (caller_waits && device.is_cpu() && !lane.is_busy && lane.queue.empty()) {
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
  connections_.close();
  lanes_.clear();
}

void Communicator::abort() {
  if (is_inherited()) return;
  connections_.abort("what was under way was dropped, or the process ends");
  close();
}

void Communicator::fail(const std::string& text) {
  Place place;
  {
    const std::lock_guard lock(mutex_);
    place = num_submitted_;
  }
  connections_.fail_first({false, text, place});
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

void Communicator::run_job(Lane& lane, Job& job) {
  c10::OptionalStreamGuard guard;
  std::exception_ptr error;
  std::string place = describe_place(rank(), job.id);
  try {
    connections_.begin(static_cast<size_t>(lane.index));
    if (job.ready) {
      const c10::Stream stream = lane.codecs_on(job.tensors.bucket.device()).stream();
      guard.reset_stream(stream);
      job.ready->block(stream);
      job.ready.reset();  // under the guard: it would else be destroyed on another GPU
      // Also if this fails half-way, their memory must stay until the stream is done with it.
      job.tensors.record_stream(stream);
    }
    exchange(lane, job, place);
  } catch (const std::exception& caught) {
    const bool is_mismatch = dynamic_cast<const MismatchError*>(&caught) != nullptr;
    connections_.fail({is_mismatch, place + ": " + caught.what(), job.place});
    error = current_error_at(place);
  }
  {
    const std::lock_guard lock(mutex_);
    lane.is_busy = false;
    changed_.notify_all();
  }
  job.complete(error);
}

void Communicator::exchange(Lane& lane, const Job& job, std::string& place) {
  const DefaultFloatingPoint default_floating_point;
  const BucketMemory memory = job.tensors.memory();
  const bool has_velocity = job.tensors.velocity.has_value();
  const BucketPlan& plan = *job.plan;
  std::unique_ptr<Codec> codec;
  if (job.tensors.bucket.is_cpu()) {
    lane.workspace.threads = plan.threads;
    if (has_velocity) accumulate_velocity(memory, job.momentum, plan.threads.get());
    codec = std::make_unique<BucketCodec>(plan.codecs, memory, plan.runs, job.factor, rank(),
                                          lane.workspace);
  } else {
    DeviceCodecs& codecs = lane.codecs_on(job.tensors.bucket.device());
    if (has_velocity) codecs.accumulate_velocity(memory, job.momentum);
    codec = codecs.staged_codec(plan.codecs, memory, plan.runs, job.factor, rank());
  }
  Measurements measurements;
  std::vector<TraceEvent> trace;
  Exchange exchange(*codec, lane.transport, lane.buffers, measurements, job.id,
                    record_.is_traced() ? &trace : nullptr);
  try {
    lane.openings.run(exchange, *plan.schedule);
  } catch (...) {
    place = exchange.place();
    // A wait that failed is what one looks for.
    record_.add(measurements, trace, lane.index, job.id);
    throw;
  }
  record_.add(measurements, trace, lane.index, job.id);
}

}  // namespace fastcomm
