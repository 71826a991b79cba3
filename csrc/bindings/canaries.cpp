#include "bindings/canaries.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "bindings/c10d_work.h"

namespace fastcomm {
namespace {

constexpr int64_t kNoteBytes = 2048;

// How long notes that were sent have to leave before the connections are closed.
constexpr std::chrono::milliseconds kTimeToLeave{200};

// A shorter message than its receive leaves zeros behind it; so does a shorter text.
at::Tensor empty_note() { return at::zeros({kNoteBytes}, at::kByte); }

std::string text_of(const at::Tensor& note) {
  const auto* text = static_cast<const char*>(note.const_data_ptr());
  return {text, std::find(text, text + kNoteBytes, '\0')};
}

}  // namespace

struct Canaries::Canary {
  int peer;
  c10d::Backend& backend;
  at::Tensor note;
  c10::intrusive_ptr<c10d::Work> receive;  // nullptr: nothing comes any more
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
      post(*canaries_.back());
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

void Canaries::post(Canary& canary) {
  canary.note = empty_note();
  std::vector<at::Tensor> tensors{canary.note};
  const std::lock_guard lock(mutex_);
  canary.receive = nullptr;
  if (stopped_) return;
  try {
    canary.receive = canary.backend.recv(tensors, canary.peer, static_cast<int>(tag_));
  } catch (const std::exception&) {
    // The connection is closed.
  }
}

void Canaries::watch(Canary& canary) {
  try {
    while (canary.receive != nullptr && canary.receive->wait(kForever)) {
      const std::string note = text_of(canary.note);
      post(canary);  // first: the next note does not wait for what becomes of this one
      callbacks_.on_note(canary.peer, note);
    }
  } catch (const std::exception&) {
    // The connection is closed.
  }
  bool is_last = false;
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return;
    is_last = --num_left_[static_cast<size_t>(canary.peer)] == 0;
  }
  callbacks_.on_close(canary.peer, is_last);
}

void Canaries::send(int peer, const std::string& note) {
  std::vector<at::Tensor> tensors{empty_note()};
  note.copy(static_cast<char*>(tensors[0].data_ptr()), kNoteBytes);
  try {
    auto work = backends_[0]->send(tensors, peer, static_cast<int>(tag_));
    const std::lock_guard lock(mutex_);
    sends_.push_back(std::move(work));
  } catch (const std::exception&) {
    // The peer has ended.
  }
}

void Canaries::wait_for_sends() {
  using std::chrono::milliseconds;
  std::vector<c10::intrusive_ptr<c10d::Work>> sends;
  {
    const std::lock_guard lock(mutex_);
    sends = sends_;
  }
  const auto end = std::chrono::steady_clock::now() + kTimeToLeave;
  for (const auto& send : sends) {
    const auto left = end - std::chrono::steady_clock::now();
    try {
      // A wait that takes too long closes the connections, which are given up now.
      send->wait(std::max(std::chrono::duration_cast<milliseconds>(left), milliseconds(1)));
    } catch (const std::exception&) {
      return;
    }
  }
}

void Canaries::stop() {
  wait_for_sends();
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
