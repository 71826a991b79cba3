// In place of cuda_codecs.cpp where fastcomm is built for the CPU only.

#include "bindings/device_codecs.h"
#include "core/check.h"

namespace fastcomm {
namespace {

[[noreturn]] void fail() {
  FASTCOMM_FAIL(
      "this fastcomm was built for the CPU only; rebuild it where nvcc and a CUDA torch are "
      "installed");
}

}  // namespace

const bool has_cuda = false;

std::shared_ptr<FailureRecord> make_failure_record(c10::Device) { fail(); }
std::unique_ptr<DeviceCodecs> make_device_codecs(c10::Stream, std::shared_ptr<FailureRecord>) {
  fail();
}
bool is_capturing(c10::Stream) { return false; }
std::shared_ptr<std::byte> allocate_pinned(int64_t) { fail(); }

}  // namespace fastcomm
