// The pybind11 module fastcomm._C. fastcomm/_C.pyi describes it; arguments are checked for users
// in Python, here only for what would be unsafe.

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings/communicator.h"
#include "bindings/future.h"
#include "collectives/announcement.h"

namespace fastcomm {
namespace {

using PythonFuture = torch::jit::PythonFutureWrapper;
using NoGil = py::call_guard<py::gil_scoped_release>;

void check_memory(const at::Tensor& tensor, const char* what) {
  FASTCOMM_CHECK(tensor.device().is_cpu(),
                 what << " is on " << tensor.device() << ", not on the CPU");
  FASTCOMM_CHECK(tensor.is_contiguous(), what << " is not contiguous");
}

void check_residual(const std::optional<at::Tensor>& residual, const at::Tensor& tensor) {
  if (!residual) return;
  check_memory(*residual, "residual");
  FASTCOMM_CHECK(residual->scalar_type() == at::kFloat && residual->numel() == tensor.numel(),
                 "residual has " << residual->numel() << " elements of " << residual->scalar_type()
                                 << ", not " << tensor.numel() << " of float32");
}

BucketMemory memory_of(const at::Tensor& tensor, const std::optional<at::Tensor>& residual) {
  check_memory(tensor, "tensor");
  check_residual(residual, tensor);
  return {tensor.data_ptr(), dtype_of(tensor), residual ? residual->data_ptr<float>() : nullptr,
          tensor.numel()};
}

std::span<std::byte> bytes_of(const at::Tensor& payload) {
  check_memory(payload, "payload");
  FASTCOMM_CHECK(payload.scalar_type() == at::kByte, "payload is not of uint8");
  return {static_cast<std::byte*>(payload.data_ptr()), static_cast<size_t>(payload.numel())};
}

int64_t payload_bytes(const CodecSpec& spec, int64_t num_elements) {
  CodecWorkspace workspace;
  const BucketMemory nowhere{nullptr, DType::kFloat32, nullptr, num_elements};
  return BucketCodec(spec, nowhere, {}, 1.0f, workspace).payload_bytes({0, num_elements});
}

at::Tensor encode(const CodecSpec& spec, const at::Tensor& tensor,
                  const std::optional<at::Tensor>& residual) {
  CodecWorkspace workspace;
  BucketCodec codec(spec, memory_of(tensor, residual), {}, 1.0f, workspace);
  const ElementRange all{0, tensor.numel()};
  at::Tensor payload = at::empty({codec.payload_bytes(all)}, at::kByte);
  codec.encode(all, {}, {}, bytes_of(payload), {});
  return payload;
}

void decode(const CodecSpec& spec, const at::Tensor& payload, const at::Tensor& out) {
  CodecWorkspace workspace;
  BucketCodec codec(spec, memory_of(out, std::nullopt), {}, 1.0f, workspace);
  const std::span<const std::byte> bytes = bytes_of(payload);
  const MessageLabel label;
  codec.decode({0, out.numel()}, {&bytes, 1}, {&label, 1});
}

std::shared_ptr<PythonFuture> all_reduce(Communicator& communicator, const at::Tensor& bucket,
                                         const std::optional<at::Tensor>& residual,
                                         std::shared_ptr<const BucketPlan> plan, float factor,
                                         uint32_t step, uint16_t bucket_index) {
  memory_of(bucket, residual);
  TensorFuture result(bucket);
  Future future = result.future;
  const std::string place = "rank " + std::to_string(communicator.rank()) + ", step " +
                            std::to_string(step) + ", bucket " + std::to_string(bucket_index) +
                            ": ";
  Job job{
      std::move(plan),
      bucket,
      residual,
      factor,
      {step, bucket_index},
      [result, place](const std::exception_ptr& error) mutable { result.complete(error, place); }};
  const py::gil_scoped_release no_gil;
  communicator.submit(std::move(job));
  return std::make_shared<PythonFuture>(future);
}

struct DeleteWithoutGil {
  void operator()(Communicator* communicator) const {
    const py::gil_scoped_release no_gil;
    delete communicator;
  }
};

void translate_error(std::exception_ptr error) {
  auto raise = [](const char* type, const std::exception& caught) {
    py::set_error(py::module_::import("fastcomm.errors").attr(type), caught.what());
  };
  try {
    if (error) std::rethrow_exception(error);
  } catch (const PayloadError& caught) {
    raise("PayloadError", caught);
  } catch (const MismatchError& caught) {
    raise("MismatchError", caught);
  } catch (const Error& caught) {
    raise("Error", caught);
  } catch (torch::PyTorchError& caught) {  // of a future
    PyErr_SetString(caught.python_type(), caught.what());
  }
}

py::dict measurements_dict(const Communicator& communicator) {
  const Measurements measurements = communicator.measurements();
  py::dict dict;
  dict["wire_bytes"] = measurements.wire_bytes;
  dict["seconds_encode"] = measurements.seconds_encode;
  dict["seconds_decode"] = measurements.seconds_decode;
  dict["seconds_wait"] = measurements.seconds_wait;
  return dict;
}

PYBIND11_MODULE(_C, module) {
  py::register_exception_translator(translate_error);

  module.attr("PAYLOAD_ALIGNMENT") = kSectionAlignment;
  module.attr("ANNOUNCEMENT_BYTES") = kAnnouncementBytes;
  module.attr("TOPK_LARGEST_SPARSE_DENSITY") = kLargestSparseDensity;
  module.def("dense_codec_names", [] {
    std::vector<std::string> names;
    for (const DenseFormat& format : dense_formats()) names.emplace_back(format.name);
    return names;
  });
  module.def("block_elements",
             [](const std::string& name) { return dense_format(name).block_elements; });
  module.def("algorithm_names", [] {
    std::vector<std::string> names;
    for (const Schedule& schedule : schedules()) names.emplace_back(schedule.name);
    return names;
  });
  module.def("supported_isas", [] {
    std::vector<std::string> names;
    for (Isa isa : supported_isas()) names.emplace_back(isa_name(isa));
    return names;
  });
  module.def("active_isa", [] { return std::string(isa_name(active_isa())); });
  module.def("force_isa", [](const std::string& name) { force_isa(name); });

  py::class_<CodecSpec>(module, "CodecSpec")
      .def(py::init([](std::string name, double density) {
             return CodecSpec{std::move(name), density};
           }),
           py::arg("name"), py::arg("density") = 1.0);
  module.def("payload_bytes", payload_bytes);
  module.def("payload_num_elements", [](const at::Tensor& payload) {
    return int64_t{payload_num_elements(bytes_of(payload))};
  });
  module.def("encode", encode, NoGil());
  module.def("decode", decode, NoGil());

  py::class_<BucketPlan, std::shared_ptr<BucketPlan>>(module, "BucketPlan")
      .def(py::init([](CodecSpec codec, const std::vector<std::pair<int64_t, bool>>& runs,
                       const std::string& algorithm) {
             BucketPlan plan{std::move(codec), {}, &schedule(algorithm)};
             for (const auto& [num_elements, compressed] : runs) {
               plan.runs.push_back({num_elements, compressed});
             }
             return std::make_shared<BucketPlan>(std::move(plan));
           }),
           py::arg("codec"), py::arg("runs"), py::arg("algorithm"));

  py::class_<Communicator, std::unique_ptr<Communicator, DeleteWithoutGil>>(module, "Communicator")
      .def(py::init([](std::optional<c10::intrusive_ptr<c10d::Backend>> backend, int num_lanes) {
             return std::unique_ptr<Communicator, DeleteWithoutGil>(
                 new Communicator(backend.value_or(nullptr), num_lanes));
           }),
           py::arg("backend"), py::arg("num_lanes"))
      .def("all_reduce", all_reduce, py::arg("bucket"), py::arg("residual"), py::arg("plan"),
           py::arg("factor"), py::arg("step"), py::arg("bucket_index"))
      .def("measurements", measurements_dict)
      .def("close", &Communicator::close, NoGil())
      .def("abort", &Communicator::abort, NoGil());

  module.def("failed_future", [](const std::string& type, const std::string& message) {
    return std::make_shared<PythonFuture>(failed_future(type, message));
  });
}

}  // namespace
}  // namespace fastcomm
