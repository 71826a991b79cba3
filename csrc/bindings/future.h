#pragma once
// Futures that DDP accepts and that a thread without the GIL can complete.

#include <ATen/core/ivalue.h>
#include <pybind11/pytypes.h>

namespace fastcomm {

using Future = c10::intrusive_ptr<c10::ivalue::Future>;

// The future as Python has it: a torch.futures.Future. The caller must hold the GIL.
pybind11::object python_future(const Future& future);

// A future that will hold `tensor`. DDP reads a hook's future as a Python object, so that one is
// made here, ahead of time. The caller must hold the GIL.
struct TensorFuture {
  explicit TensorFuture(const at::Tensor& tensor);
  // Completes the future; `error`, if any, becomes one of fastcomm.errors. Needs no GIL. A tensor
  // on a GPU is complete on the current stream then: who waits for the future makes a stream wait
  // for that one, not the host.
  void complete(const std::exception_ptr& error);
  // The same with an error of the class fastcomm.errors.<type>.
  void fail(const std::string& type, const std::string& message);

  Future future;
  c10::IValue value;
};

// A future that has failed already, with the class fastcomm.errors.<type>: what a hook returns
// instead of raising, which would leave DDP's reducer unusable.
Future failed_future(const std::string& type, const std::string& message);

}  // namespace fastcomm
