#include "bindings/nccl_groups.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fastcomm {
namespace {

class NcclGroup final : public PendingMessage {
 public:
  explicit NcclGroup(c10::intrusive_ptr<c10d::Work> work) : work_(std::move(work)) {}
  void wait() override { FASTCOMM_CHECK(work_->wait(), "NCCL's messages were aborted"); }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
};

constexpr int kNoTag = 0;  // NCCL has none: order tells messages apart

}  // namespace

std::unique_ptr<PendingMessage> NcclGroups::launch(const std::optional<Send>& send,
                                                   const std::optional<Receive>& receive) {
  // The message's memory as a tensor, without a copy. The device is given: to find it out by the
  // address would ask the driver.
  const auto as_tensors = [&](const std::byte* bytes, size_t size) -> std::vector<at::Tensor> {
    return {at::for_blob(const_cast<std::byte*>(bytes), {static_cast<int64_t>(size)})
                .options(at::TensorOptions().dtype(at::kByte).device(device_))
                .target_device(device_)
                .make_tensor()};
  };
  c10::intrusive_ptr<c10d::Work> work;
  try {
    backend_->startCoalescing();
    try {
      if (receive) {
        auto tensors = as_tensors(receive->bytes.data(), receive->bytes.size());
        backend_->recv(tensors, receive->peer, kNoTag);
      }
      if (send) {
        auto tensors = as_tensors(send->bytes.data(), send->bytes.size());
        backend_->send(tensors, send->peer, kNoTag);
      }
    } catch (const std::exception&) {
      try {
        backend_->endCoalescing();  // the thread would otherwise stay inside of the group
      } catch (const std::exception&) {
        // The first error says more.
      }
      throw;
    }
    work = backend_->endCoalescing();
  } catch (const std::exception& error) {
    std::string what;
    if (send) what += "sending to rank " + std::to_string(send->peer);
    if (send && receive) what += " and ";
    if (receive) what += "receiving from rank " + std::to_string(receive->peer);
    FASTCOMM_FAIL(what << " of the process group failed: " << error.what());
  }
  FASTCOMM_CHECK(work != nullptr, "the backend " << backend_->getBackendName()
                                                 << " gave nothing to wait for; use NCCL");
  return std::make_unique<NcclGroup>(std::move(work));
}

}  // namespace fastcomm
