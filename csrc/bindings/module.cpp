// The pybind11 module fastcomm._C. fastcomm/_C.pyi describes it; arguments are checked for users
// in Python, here only for what would be unsafe.

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings/communicator.h"
#include "bindings/future.h"
#include "collectives/opening.h"
#include "collectives/schedules.h"
#include "core/pages.h"
#include "core/stream_copy.h"

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

// Payloads of slices, one after another, as the ring cuts a bucket: for the codecs' users and their
// benchmark. A whole tensor in one payload is one slice.
struct Slices {
  Slices(const BucketCodec& codec, bool is_whole) {
    const BucketShape shape = codec.shape();
    ranges = is_whole
                 ? std::vector<ElementRange>{{0, shape.num_elements}}
                 : cut_slices({0, shape.num_elements}, slice_elements(shape, shape.num_elements));
    for (ElementRange range : ranges) {
      offsets.push_back(bytes);
      bytes += align_up(codec.payload_bytes(range), kSectionAlignment);
    }
    offsets.push_back(bytes);
  }
  template <class Byte>
  std::span<Byte> payload(const BucketCodec& codec, std::span<Byte> payloads, size_t i) const {
    return payloads.subspan(static_cast<size_t>(offsets[i]),
                            static_cast<size_t>(codec.payload_bytes(ranges[i])));
  }
  std::vector<ElementRange> ranges;
  std::vector<int64_t> offsets;
  int64_t bytes = 0;
};

std::vector<Run> to_runs(const std::vector<std::pair<int64_t, bool>>& pairs) {
  std::vector<Run> runs;
  for (const auto& [num_elements, compressed] : pairs) runs.push_back({num_elements, compressed});
  return runs;
}

int64_t payload_bytes(const CodecSpec& spec, int64_t num_elements, bool sliced,
                      const std::vector<std::pair<int64_t, bool>>& runs) {
  CodecWorkspace workspace;
  const BucketMemory nowhere{nullptr, DType::kFloat32, nullptr, num_elements};
  return Slices(BucketCodec(spec, nowhere, to_runs(runs), 1.0f, 0, workspace), !sliced).bytes;
}

void check_payload_size(std::span<const std::byte> payload, const Slices& slices) {
  FASTCOMM_CHECK(static_cast<int64_t>(payload.size()) == slices.bytes,
                 "the payload has " << payload.size() << " bytes, not " << slices.bytes);
}

void encode(const CodecSpec& spec, const at::Tensor& tensor,
            const std::optional<at::Tensor>& residual, const std::vector<at::Tensor>& received,
            const at::Tensor& payload, CodecWorkspace& workspace, bool sliced, bool sealed) {
  BucketCodec codec(spec, memory_of(tensor, residual), {}, 1.0f, 0, workspace);
  const Slices slices(codec, !sliced);
  check_payload_size(bytes_of(payload), slices);
  for (const at::Tensor& other : received) check_payload_size(bytes_of(other), slices);
  const std::vector<MessageLabel> labels(received.size());
  std::vector<std::span<const std::byte>> received_slices(received.size());
  for (size_t i = 0; i < slices.ranges.size(); ++i) {
    for (size_t r = 0; r < received.size(); ++r) {
      received_slices[r] = slices.payload<std::byte>(codec, bytes_of(received[r]), i);
    }
    const std::span<std::byte> slice = slices.payload<std::byte>(codec, bytes_of(payload), i);
    if (sealed) {
      codec.encode(slices.ranges[i], received_slices, labels, slice, {});
    } else {
      codec.encode_sections(slices.ranges[i], received_slices, slice, {});
    }
  }
}

void decode(const CodecSpec& spec, const at::Tensor& payload, const at::Tensor& out,
            CodecWorkspace& workspace, bool sliced, bool sealed) {
  BucketCodec codec(spec, memory_of(out, std::nullopt), {}, 1.0f, 0, workspace);
  const Slices slices(codec, !sliced);
  const MessageLabel label;
  if (!sliced) {  // of any size: the header's check says what is wrong
    const std::span<const std::byte> bytes = bytes_of(payload);
    return codec.decode(slices.ranges[0], {&bytes, 1}, {&label, 1});
  }
  check_payload_size(bytes_of(payload), slices);
  for (size_t i = 0; i < slices.ranges.size(); ++i) {
    const std::span<const std::byte> bytes = slices.payload<std::byte>(codec, bytes_of(payload), i);
    if (sealed) {
      codec.decode(slices.ranges[i], {&bytes, 1}, {&label, 1});
    } else {
      codec.decode_sections(slices.ranges[i], {&bytes, 1});
    }
  }
}

// Zeros of float32, in memory that is good to stream through.
at::Tensor streamed_zeros(int64_t num_elements) {
  auto pages = std::make_shared<Pages>(num_elements * static_cast<int64_t>(sizeof(float)));
  return at::from_blob(
      pages->data(), {num_elements}, [pages](void*) mutable { pages.reset(); }, at::kFloat);
}

// Gives the memory of a part of streamed_zeros() back; its values are lost.
void release_streamed(const at::Tensor& part) {
  check_memory(part, "part");
  release_pages(static_cast<std::byte*>(part.data_ptr()), static_cast<int64_t>(part.nbytes()));
}

void copy_streaming(const at::Tensor& out, const at::Tensor& tensor, CodecWorkspace& workspace) {
  check_memory(out, "out");
  check_residual(out, tensor);  // as many elements of float32
  run_in_parts(
      workspace.threads.get(), tensor.numel(), int64_t{1} << 18, [&](int64_t begin, int64_t end) {
        stream_copy(tensor.data_ptr<float>() + begin, out.data_ptr<float>() + begin, end - begin);
      });
}

std::shared_ptr<PythonFuture> all_reduce(Communicator& communicator, const at::Tensor& bucket,
                                         const std::optional<at::Tensor>& residual,
                                         std::shared_ptr<const BucketPlan> plan, float factor,
                                         uint32_t step, uint16_t bucket_index, bool caller_waits) {
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
  communicator.submit(std::move(job), caller_waits);
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
  dict["seconds_send"] = measurements.seconds_send;
  dict["seconds_wait"] = measurements.seconds_wait;
  return dict;
}

// (lane, step, bucket, name, begin in seconds of the monotonic clock, seconds, payload bytes)
py::list stop_trace(Communicator& communicator) {
  using Seconds = std::chrono::duration<double>;
  py::list list;
  for (const auto& [lane, exchange, event] : communicator.stop_trace()) {
    list.append(py::make_tuple(lane, exchange.step, exchange.bucket, event.name,
                               Seconds(event.begin.time_since_epoch()).count(),
                               Seconds(event.end - event.begin).count(), event.bytes));
  }
  return list;
}

PYBIND11_MODULE(_C, module) {
  py::register_exception_translator(translate_error);

  module.attr("PAYLOAD_ALIGNMENT") = kSectionAlignment;
  module.attr("OPENING_RECORD_BYTES") = kRecordBytes;
  module.def("largest_opening_payload", largest_opening_payload, py::arg("world_size"));
  module.attr("TOPK_LARGEST_SPARSE_DENSITY") = kLargestSparseDensity;
  py::class_<DenseFormat>(module, "DenseFormat")
      .def_property_readonly("name", [](const DenseFormat& f) { return std::string(f.name); })
      .def_readonly("block_elements", &DenseFormat::block_elements)
      .def_readonly("has_scale", &DenseFormat::has_scale)
      .def_readonly("is_rotated", &DenseFormat::is_rotated)
      .def_readonly("has_stochastic_rounding", &DenseFormat::has_stochastic_rounding)
      .def_property_readonly(
          "code_bits", [](const DenseFormat& f) { return 8 * f.unit_bytes / f.elements_per_unit; });
  module.def("dense_formats", [] { return dense_formats(); });
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
      .def(py::init([](std::string name, double density, bool is_stochastic, uint32_t seed,
                       bool rotates) {
             return CodecSpec{std::move(name), density, is_stochastic, seed, rotates};
           }),
           py::arg("name"), py::arg("density") = 1.0, py::arg("is_stochastic") = false,
           py::arg("seed") = 0, py::arg("rotates") = true);
  py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(module, "ThreadPool")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &ThreadPool::num_threads);
  py::class_<CodecWorkspace>(module, "CodecWorkspace")
      .def(py::init([](std::shared_ptr<ThreadPool> threads) {
             auto workspace = std::make_unique<CodecWorkspace>();
             workspace->threads = std::move(threads);
             return workspace;
           }),
           py::arg("threads") = nullptr);
  module.def("payload_bytes", payload_bytes, py::arg("spec"), py::arg("num_elements"),
             py::arg("sliced") = false, py::arg("runs") = std::vector<std::pair<int64_t, bool>>{});
  module.def("payload_num_elements", [](const at::Tensor& payload) {
    return int64_t{payload_num_elements(bytes_of(payload))};
  });
  module.def("encode", encode, py::arg("spec"), py::arg("tensor"), py::arg("residual"),
             py::arg("received"), py::arg("payload"), py::arg("workspace"),
             py::arg("sliced") = false, py::arg("sealed") = true, NoGil());
  module.def("decode", decode, py::arg("spec"), py::arg("payload"), py::arg("out"),
             py::arg("workspace"), py::arg("sliced") = false, py::arg("sealed") = true, NoGil());
  module.def("streamed_zeros", streamed_zeros, py::arg("num_elements"));
  module.def("release_streamed", release_streamed, py::arg("part"));
  module.def("stream_copy", copy_streaming, py::arg("out"), py::arg("tensor"), py::arg("workspace"),
             NoGil());

  py::class_<BucketPlan, std::shared_ptr<BucketPlan>>(module, "BucketPlan")
      .def(py::init([](CodecSpec codec, const std::vector<std::pair<int64_t, bool>>& runs,
                       const std::string& algorithm, std::shared_ptr<ThreadPool> threads) {
             return std::make_shared<BucketPlan>(BucketPlan{
                 std::move(codec), to_runs(runs), &schedule(algorithm), std::move(threads)});
           }),
           py::arg("codec"), py::arg("runs"), py::arg("algorithm"), py::arg("threads"));

  py::class_<Communicator, std::unique_ptr<Communicator, DeleteWithoutGil>>(module, "Communicator")
      .def(py::init(
               [](const std::vector<c10::intrusive_ptr<c10d::Backend>>& backends, int num_lanes) {
                 return std::unique_ptr<Communicator, DeleteWithoutGil>(
                     new Communicator(backends, num_lanes));
               }),
           py::arg("backends"), py::arg("num_lanes"))
      .def("all_reduce", all_reduce, py::arg("bucket"), py::arg("residual"), py::arg("plan"),
           py::arg("factor"), py::arg("step"), py::arg("bucket_index"),
           py::arg("caller_waits") = false)
      .def("measurements", measurements_dict)
      .def("start_trace", &Communicator::start_trace)
      .def("stop_trace", stop_trace)
      .def("abort", &Communicator::abort, NoGil());

  module.def("failed_future", [](const std::string& type, const std::string& message) {
    return std::make_shared<PythonFuture>(failed_future(type, message));
  });
}

}  // namespace
}  // namespace fastcomm
