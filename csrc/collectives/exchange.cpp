#include "collectives/exchange.h"

#include <utility>

#include "core/check.h"
#include "core/pages.h"

namespace fastcomm {
namespace {

std::shared_ptr<std::byte> allocate_pages(int64_t bytes) {
  auto pages = std::make_shared<Pages>(bytes);
  return {pages, pages->data()};
}

// Adds the time until its end to `seconds`, and to the trace, if there is one.
class Stopwatch {
 public:
  Stopwatch(double& seconds, std::vector<TraceEvent>* trace, const char* name, size_t bytes)
      : seconds_(seconds), trace_(trace), event_{name, Clock::now(), {}, int64_t(bytes)} {}
  ~Stopwatch() {
    event_.end = Clock::now();
    seconds_ += std::chrono::duration<double>(event_.end - event_.begin).count();
    if (trace_ != nullptr) trace_->push_back(event_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  double& seconds_;
  std::vector<TraceEvent>* trace_;
  TraceEvent event_;
};

}  // namespace

PayloadBuffers::PayloadBuffers() : allocate_(allocate_pages) {}

void PayloadBuffers::reserve(int num_buffers, int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  // DDP's first step has one bucket for all of the model, later ones are smaller.
  constexpr int kMostSmall = 16;
  bytes_ = bytes;
  stride_ = align_up(bytes, kAlignment);
  const int64_t needed = num_buffers * stride_;
  num_small_ = needed < capacity_ / 2 ? num_small_ + 1 : 0;
  if (needed <= capacity_ && num_small_ <= kMostSmall) return;
  memory_ = nullptr;  // before there is more
  capacity_ = 0;
  memory_ = allocate_(needed);
  capacity_ = needed;
  num_small_ = 0;
}

void PayloadBuffers::take_memory_from(AllocatePayloads allocate) {
  memory_ = nullptr;
  capacity_ = 0;
  allocate_ = std::move(allocate);
}

std::string describe(ExchangeId id) {
  const std::string step = std::to_string(id.step);
  if (id.bucket == kSettings) return "comparing settings " + step;
  return "step " + step + ", bucket " + std::to_string(id.bucket);
}

std::string describe_place(int rank, ExchangeId id) {
  return "rank " + std::to_string(rank) + ", " + describe(id);
}

std::exception_ptr current_error_at(const std::string& place) {
  try {
    throw;
  } catch (Error& error) {
    error.add_place(place);
    return std::current_exception();
  } catch (const std::exception& error) {
    return std::make_exception_ptr(Error(place + ": " + error.what()));
  }
}

MessageLabel Exchange::label(int segment, int64_t slice) const {
  return {id_.step, id_.bucket, static_cast<uint16_t>(segment), static_cast<uint32_t>(slice)};
}

std::string Exchange::describe() const {
  return fastcomm::describe(id_) + ", " + codec_.describe();
}

std::string Exchange::place() const {
  return describe_place(rank(), id_) + (hop_ < 0 ? ", opening" : ", hop " + std::to_string(hop_));
}

void Exchange::encode(ElementRange range, std::span<const std::span<const std::byte>> received,
                      std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
                      const MessageLabel& label) {
  const Stopwatch stopwatch(measurements_.seconds_encode, trace_, "encode", payload.size());
  codec_.encode(range, received, received_labels, payload, label);
}

void Exchange::decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
                      std::span<const MessageLabel> labels) {
  const Stopwatch stopwatch(measurements_.seconds_decode, trace_, "decode", payloads[0].size());
  codec_.decode(range, payloads, labels);
}

std::unique_ptr<PendingMessage> Exchange::send(int peer, Tag tag,
                                               std::span<const std::byte> bytes) {
  measurements_.wire_bytes += static_cast<int64_t>(bytes.size());
  const Stopwatch stopwatch(measurements_.seconds_send, trace_, "send", bytes.size());
  return transport_.send(peer, tag, bytes);
}

std::unique_ptr<PendingMessage> Exchange::receive(int peer, Tag tag, std::span<std::byte> bytes) {
  return transport_.receive(peer, tag, bytes);
}

void Exchange::wait(std::unique_ptr<PendingMessage>& message) {
  if (message == nullptr) return;
  const Stopwatch stopwatch(measurements_.seconds_wait, trace_, "wait", 0);
  message->wait();
  message.reset();
}

}  // namespace fastcomm
