#include "bindings/canaries.h"

#include <pthread.h>

#include <utility>

#include "bindings/c10d_work.h"

namespace fastcomm {
namespace {

constexpr int64_t kNoteBytes = 2048;

// A shorter message than its receive leaves zeros behind it; so does a text.
at::Tensor empty_note() { return at::zeros({kNoteBytes}, at::kByte); }

}  // namespace

struct Canaries::Canary {
  int peer;
  c10d::Backend& backend;
  at::Tensor note;
  c10::intrusive_ptr<c10d::Work> receive;
  std::thread thread;
};

Canaries::Canaries(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, Tag tag,
                   const std::vector<int>& peers, Callbacks callbacks)
    : backends_(std::move(backends)),
      tag_(tag),
      callbacks_(std::move(callbacks)),
      num_left_(static_cast<size_t>(backends_[0]->getSize()), backends_.size()) {
  for (const int peer : peers) {
    for (const auto& backend : backends_) {
      canaries_.push_back(std::make_unique<Canary>(Canary{peer, *backend, {}, {}, {}}));
    }
  }
}

Canaries::~Canaries() { stop(); }

void Canaries::start() {
  for (const auto& canary : canaries_) {
    canary->thread = std::thread([this, &canary = *canary] { watch(canary); });
    pthread_setname_np(canary->thread.native_handle(), "fastcomm-canary");
  }
}

void Canaries::watch(Canary& canary) {
  while (receive(canary)) {
    callbacks_.on_note(canary.peer, static_cast<const char*>(canary.note.const_data_ptr()));
  }
  if (was_last(canary.peer)) callbacks_.on_end(canary.peer);
}

bool Canaries::receive(Canary& canary) {
  canary.note = empty_note();
  std::vector<at::Tensor> tensors{canary.note};
  try {
    {
      const std::lock_guard lock(mutex_);
      if (stopped_) return false;
      canary.receive = canary.backend.recv(tensors, canary.peer, static_cast<int>(tag_));
    }
    return canary.receive->wait(kForever);
  } catch (const std::exception&) {
    return false;  // the connection is closed
  }
}

bool Canaries::was_last(int peer) {
  const std::lock_guard lock(mutex_);
  return --num_left_[static_cast<size_t>(peer)] == 0 && !stopped_;
}

void Canaries::send(int peer, const std::string& note) {
  std::vector<at::Tensor> tensors{empty_note()};
  note.copy(static_cast<char*>(tensors[0].data_ptr()), static_cast<size_t>(kNoteBytes) - 1);
  try {
    auto work = backends_[0]->send(tensors, peer, static_cast<int>(tag_));
    const std::lock_guard lock(mutex_);
    sends_.push_back(std::move(work));
  } catch (const std::exception&) {
    // The peer has ended.
  }
}

void Canaries::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    for (const auto& canary : canaries_) {
      if (canary->receive != nullptr) abort_quietly(*canary->receive);
    }
  }
  for (const auto& canary : canaries_) {
    if (canary->thread.joinable()) canary->thread.join();
  }
  canaries_.clear();
  sends_.clear();
}

}  // namespace fastcomm
