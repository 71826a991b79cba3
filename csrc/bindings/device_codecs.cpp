#include "bindings/device_codecs.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/check.h"

namespace fastcomm {

c10::Stream current_stream(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

c10::Stream side_stream(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type())
      .getStreamFromGlobalPool(device, /*isHighPriority=*/true);
}

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

BucketMemory memory_of(const at::Tensor& bucket, const std::optional<at::Tensor>& residual) {
  return {bucket.data_ptr(), dtype_of(bucket), residual ? residual->data_ptr<float>() : nullptr,
          bucket.numel()};
}

}  // namespace fastcomm
