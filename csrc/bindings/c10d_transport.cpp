#include "bindings/c10d_transport.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fastcomm {
namespace {

class C10dPending final : public PendingMessage {
 public:
  C10dPending(c10::intrusive_ptr<c10d::Work> work, const char* what, int peer)
      : work_(std::move(work)), what_(what), peer_(peer) {}

  // A message that nobody waited for belongs to an exchange that failed.
  ~C10dPending() override {
    if (work_ == nullptr) return;
    try {
      work_->abort();
    } catch (const std::exception&) {
      // Not every backend can abort a message; the exchange has failed already.
    }
  }

  void wait() override {
    const auto work = std::move(work_);
    bool completed = false;
    try {
      completed = work->wait();
    } catch (const std::exception& error) {
      FASTCOMM_FAIL(what_ << " rank " << peer_ << " of the process group failed: " << error.what());
    }
    FASTCOMM_CHECK(completed, what_ << " rank " << peer_ << " of the process group was aborted");
  }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  const char* what_;
  const int peer_;
};

// The message's memory as a tensor, without a copy.
std::vector<at::Tensor> as_tensors(std::byte* bytes, size_t size) {
  return {at::from_blob(bytes, {static_cast<int64_t>(size)}, at::kByte)};
}

}  // namespace

C10dTransport::C10dTransport(c10::intrusive_ptr<c10d::Backend> backend, Tag first_tag)
    : backend_(std::move(backend)),
      rank_(backend_ ? backend_->getRank() : 0),
      world_size_(backend_ ? backend_->getSize() : 1),
      first_tag_(first_tag) {}

std::unique_ptr<PendingMessage> C10dTransport::send(int peer, Tag tag,
                                                    std::span<const std::byte> bytes) {
  auto tensors = as_tensors(const_cast<std::byte*>(bytes.data()), bytes.size());
  return std::make_unique<C10dPending>(
      backend_->send(tensors, peer, static_cast<int>(first_tag_ + tag)), "sending to", peer);
}

std::unique_ptr<PendingMessage> C10dTransport::receive(int peer, Tag tag,
                                                       std::span<std::byte> bytes) {
  auto tensors = as_tensors(bytes.data(), bytes.size());
  return std::make_unique<C10dPending>(
      backend_->recv(tensors, peer, static_cast<int>(first_tag_ + tag)), "receiving from", peer);
}

}  // namespace fastcomm
