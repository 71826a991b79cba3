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

BucketMemory BucketTensors::memory() const {
  const auto floats_of = [](const std::optional<at::Tensor>& tensor) {
    return tensor ? tensor->data_ptr<float>() : nullptr;
  };
  return {bucket.data_ptr(), dtype_of(bucket), floats_of(residual), bucket.numel(),
          floats_of(velocity)};
}

void BucketTensors::record_stream(c10::Stream stream) const {
  bucket.record_stream(stream);
  if (residual) residual->record_stream(stream);
  if (velocity) velocity->record_stream(stream);
}

}  // namespace fastcomm
