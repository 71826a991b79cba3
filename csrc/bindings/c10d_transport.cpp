#include "bindings/c10d_transport.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fastcomm {
namespace {

void abort_quietly(c10d::Work& work) {
  try {
    work.abort();
  } catch (const std::exception&) {
    // Not every backend can abort a message; the exchange has failed already.
  }
}

// The message's memory as a tensor, without a copy.
std::vector<at::Tensor> as_tensors(std::byte* bytes, size_t size) {
  return {at::from_blob(bytes, {static_cast<int64_t>(size)}, at::kByte)};
}

}  // namespace

class C10dPending final : public PendingMessage {
 public:
  C10dPending(C10dTransport& transport, c10::intrusive_ptr<c10d::Work> work, const char* what,
              int peer)
      : transport_(transport), work_(std::move(work)), what_(what), peer_(peer) {}

  // A message that nobody waited for belongs to an exchange that failed.
  ~C10dPending() override {
    forget();
    if (!waited_) abort_quietly(*work_);
  }

  void wait() override {
    waited_ = true;
    bool completed = false;
    try {
      completed = work_->wait();
    } catch (const std::exception& error) {
      FASTCOMM_FAIL(what_ << " rank " << peer_ << " of the process group failed: " << error.what());
    }
    FASTCOMM_CHECK(completed, what_ << " rank " << peer_ << " of the process group was aborted");
  }

 private:
  void forget() {
    const std::lock_guard lock(transport_.mutex_);
    transport_.under_way_.erase(work_.get());
  }

  C10dTransport& transport_;
  c10::intrusive_ptr<c10d::Work> work_;
  const char* what_;
  const int peer_;
  bool waited_ = false;
};

C10dTransport::C10dTransport(std::vector<c10::intrusive_ptr<c10d::Backend>> backends, Tag first_tag)
    : backends_(std::move(backends)),
      rank_(backends_.empty() ? 0 : backends_[0]->getRank()),
      world_size_(backends_.empty() ? 1 : backends_[0]->getSize()),
      first_tag_(first_tag) {}

bool C10dTransport::takes_shorter_messages() const {
  return !backends_.empty() && backends_[0]->getBackendName() == "gloo";
}

std::unique_ptr<PendingMessage> C10dTransport::send(int peer, Tag tag,
                                                    std::span<const std::byte> bytes) {
  auto tensors = as_tensors(const_cast<std::byte*>(bytes.data()), bytes.size());
  return track(backends_[static_cast<size_t>(rank_) % backends_.size()]->send(
                   tensors, peer, static_cast<int>(first_tag_ + tag)),
               "sending to", peer);
}

std::unique_ptr<PendingMessage> C10dTransport::receive(int peer, Tag tag,
                                                       std::span<std::byte> bytes) {
  auto tensors = as_tensors(bytes.data(), bytes.size());
  return track(backends_[static_cast<size_t>(peer) % backends_.size()]->recv(
                   tensors, peer, static_cast<int>(first_tag_ + tag)),
               "receiving from", peer);
}

std::unique_ptr<PendingMessage> C10dTransport::track(c10::intrusive_ptr<c10d::Work> work,
                                                     const char* what, int peer) {
  const std::lock_guard lock(mutex_);
  if (aborted_) abort_quietly(*work);
  under_way_.insert(work.get());
  return std::make_unique<C10dPending>(*this, std::move(work), what, peer);
}

void C10dTransport::abort() {
  const std::lock_guard lock(mutex_);
  aborted_ = true;
  for (c10d::Work* work : under_way_) abort_quietly(*work);
}

}  // namespace fastcomm
