#pragma once
// A simulation of GPUs and NCCL: every rank has a queue that computes and a queue that executes
// groups, one after another; a group takes until its partners come to theirs, and nothing is
// buffered. The host runs ahead of both.

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "codecs/codec.h"
#include "collectives/in_process_transport.h"
#include "collectives/paired_transport.h"
#include "doctest.h"

namespace fastcomm::testing {

// Executes what it is given, in order, on a thread of its own.
class Queue {
 public:
  ~Queue() {
    enqueue(nullptr);
    thread_.join();
  }
  void enqueue(std::function<void()> task) {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    changed_.notify_all();
  }
  // Something that is ready when all that was enqueued so far is done.
  std::shared_future<void> record() {
    auto reached = std::make_shared<std::promise<void>>();
    enqueue([reached] { reached->set_value(); });
    return reached->get_future().share();
  }

 private:
  void run() {
    while (true) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !tasks_.empty(); });
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      if (!task) return;
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::thread thread_{[this] { run(); }};
};

// One rank's GPU. What goes wrong in a queue ends all ranks' waits.
class Device {
 public:
  Device(InProcessNetwork& network, int rank)
      : network_(network), transport_(network.transport(rank)) {}
  // The host's error: what is enqueued may wait for what never comes.
  ~Device() {
    if (std::uncaught_exceptions() > 0) network_.abort();
  }

  Transport& transport() { return *transport_; }
  void compute(std::function<void()> task) { compute_.enqueue(guarded(std::move(task))); }
  void wait_for(std::shared_future<void> event) {
    compute_.enqueue([event] { event.wait(); });
  }
  // Runs the group after what is to be computed so far.
  std::shared_future<void> run_group(std::function<void()> group) {
    groups_.enqueue([event = compute_.record()] { event.wait(); });
    groups_.enqueue(guarded(std::move(group)));
    return groups_.record();
  }
  void synchronize() {
    groups_.record().wait();
    compute_.record().wait();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::function<void()> guarded(std::function<void()> task) {
    return [this, task = std::move(task)] {
      try {
        task();
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
        network_.abort();
      }
    };
  }

  InProcessNetwork& network_;
  std::unique_ptr<Transport> transport_;
  std::mutex mutex_;
  std::exception_ptr error_;
  Queue compute_;
  Queue groups_;
};

class GroupWait final : public PendingMessage {
 public:
  GroupWait(Device& device, std::shared_future<void> done)
      : device_(device), done_(std::move(done)) {}
  void wait() override { device_.wait_for(done_); }

 private:
  Device& device_;
  std::shared_future<void> done_;
};

class DeviceGroups final : public GroupLauncher {
 public:
  explicit DeviceGroups(Device& device) : device_(device) {}

  int rank() const override { return device_.transport().rank(); }
  int world_size() const override { return device_.transport().world_size(); }
  std::unique_ptr<PendingMessage> launch(const std::optional<Send>& send,
                                         const std::optional<Receive>& receive) override {
    REQUIRE((send || receive));
    return std::make_unique<GroupWait>(
        device_, device_.run_group([&transport = device_.transport(), send, receive] {
          constexpr Tag kNoTag = 0;  // as in NCCL, order is all that tells messages apart
          std::unique_ptr<PendingMessage> sent;
          std::unique_ptr<PendingMessage> received;
          if (receive) received = transport.receive(receive->peer, kNoTag, receive->bytes);
          if (send) sent = transport.send(send->peer, kNoTag, send->bytes);
          if (sent) sent->wait();
          if (received) received->wait();
        }));
  }

 private:
  Device& device_;
};

// A codec whose calls are enqueued.
class EnqueuedCodec final : public Codec {
 public:
  EnqueuedCodec(Codec& codec, Device& device) : codec_(codec), device_(device) {}

  BucketShape shape() const override { return codec_.shape(); }
  std::string describe() const override { return codec_.describe(); }
  int64_t payload_bytes(ElementRange range) const override { return codec_.payload_bytes(range); }
  void encode(ElementRange range, std::span<const std::span<const std::byte>> received,
              std::span<const MessageLabel> received_labels, std::span<std::byte> payload,
              const MessageLabel& label) override {
    device_.compute(
        [this, range, payload, label, payloads = copy(received), labels = copy(received_labels)] {
          codec_.encode(range, payloads, labels, payload, label);
        });
  }
  void decode(ElementRange range, std::span<const std::span<const std::byte>> payloads,
              std::span<const MessageLabel> labels) override {
    device_.compute([this, range, copied = copy(payloads), copied_labels = copy(labels)] {
      codec_.decode(range, copied, copied_labels);
    });
  }

 private:
  template <class T>
  static std::vector<T> copy(std::span<const T> values) {
    return {values.begin(), values.end()};
  }

  Codec& codec_;
  Device& device_;
};

}  // namespace fastcomm::testing
