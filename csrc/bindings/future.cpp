#include "bindings/future.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "core/check.h"

// Of torch/csrc/jit/python/pybind_utils.h, which takes a minute to compile all that it includes:
// a value of TorchScript as a Python object.
namespace torch::jit {
TORCH_PYTHON_API py::object toPyObject(c10::IValue value);
}

namespace fastcomm {
namespace {

int drop_reference(void* object) {
  Py_DECREF(static_cast<PyObject*>(object));
  return 0;
}

// Holds the Python object of a tensor. torch's own ConcretePyObjectHolder needs a symbol that
// libtorch_python does not export.
class TensorHolder final : public c10::ivalue::PyObjectHolder {
 public:
  explicit TensorHolder(const at::Tensor& tensor)
      : object_(py::cast(tensor).release().ptr()), tensor_(tensor) {}

  // The last reference may be dropped by a lane, which must not wait for the GIL: then the
  // interpreter is asked to release the object later.
  ~TensorHolder() override {
    if (!Py_IsInitialized()) return;
    if (PyGILState_Check()) {
      Py_DECREF(object_);
    } else if (Py_AddPendingCall(drop_reference, object_) != 0) {
      const py::gil_scoped_acquire gil;  // the interpreter's queue is full
      Py_DECREF(object_);
    }
  }

  PyObject* getPyObject() override { return object_; }
  c10::InferredType tryToInferType() override { return c10::InferredType(c10::TensorType::get()); }
  c10::IValue toIValue(const c10::TypePtr&, std::optional<int32_t>) override { return tensor_; }
  std::string toStr() override { return "Tensor"; }
  std::vector<at::Tensor> extractTensors() override { return {tensor_}; }

 private:
  PyObject* object_;
  at::Tensor tensor_;
};

// An exception that torch, wherever it crosses into Python, raises as fastcomm.errors.<type>.
class PythonError final : public torch::PyTorchError {
 public:
  PythonError(std::string type, const std::string& message)
      : torch::PyTorchError(message), type_(std::move(type)) {}

  PyObject* python_type() override {  // called with the GIL held
    return py::module_::import("fastcomm.errors").attr(type_.c_str()).ptr();
  }

 private:
  std::string type_;
};

std::exception_ptr as_python_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const PayloadError& caught) {
    return std::make_exception_ptr(PythonError("PayloadError", caught.what()));
  } catch (const MismatchError& caught) {
    return std::make_exception_ptr(PythonError("MismatchError", caught.what()));
  } catch (const PeerError& caught) {
    return std::make_exception_ptr(PythonError("PeerError", caught.what()));
  } catch (const std::exception& caught) {
    return std::make_exception_ptr(PythonError("Error", caught.what()));
  }
}

// `devices`: those of the value, so that who waits for it waits on the right streams, too.
Future make_future(std::vector<c10::Device> devices = {}) {
  return c10::make_intrusive<c10::ivalue::Future>(c10::PyObjectType::get(), std::move(devices));
}

}  // namespace

py::object python_future(const Future& future) { return torch::jit::toPyObject(future); }

TensorFuture::TensorFuture(const at::Tensor& tensor)
    : future(tensor.is_cpu() ? make_future() : make_future({tensor.device()})),
      value(c10::intrusive_ptr<c10::ivalue::PyObjectHolder>(
          c10::make_intrusive<TensorHolder>(tensor))) {}

void TensorFuture::complete(const std::exception_ptr& error) {
  if (error) {
    future->setError(as_python_error(error));
  } else {
    future->markCompleted(std::move(value));
  }
}

void TensorFuture::fail(const std::string& type, const std::string& message) {
  future->setError(std::make_exception_ptr(PythonError(type, message)));
}

Future failed_future(const std::string& type, const std::string& message) {
  Future future = make_future();
  future->setError(std::make_exception_ptr(PythonError(type, message)));
  return future;
}

}  // namespace fastcomm
