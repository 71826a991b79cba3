// The pybind11 module fastcomm._C. fastcomm/_C.pyi describes it; arguments are checked for users
// in Python, here only for what would be unsafe.

#include <c10/core/StreamGuard.h>
#include <pybind11/chrono.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings/codec_calls.h"
#include "bindings/communicator.h"
#include "bindings/future.h"
#include "bindings/simulated_group.h"
#include "bindings/stream_communicator.h"
#include "collectives/opening.h"

namespace fastcomm {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;

// Throws here what would be an error on a lane.
void check_bucket(const BucketTensors& tensors) {
  check_tensors(tensors);
  FASTCOMM_CHECK(!tensors.velocity || tensors.residual,
                 "there is a velocity but no residual, where what is not sent waits");
}

// Hands the job to submit(job), without the GIL.
template <class Submit>
py::object start_all_reduce(BucketTensors tensors, Momentum momentum,
                            std::shared_ptr<const BucketPlan> plan, float factor, ExchangeId id,
                            Submit&& submit) {
  check_bucket(tensors);
  TensorFuture result(tensors.bucket);
  Future future = result.future;
  Job job{std::move(plan),
          std::move(tensors),
          momentum,
          factor,
          id,
          [result](const std::exception_ptr& error) mutable { result.complete(error); }};
  {
    const py::gil_scoped_release no_gil;
    submit(std::move(job));
  }
  return python_future(future);
}

py::object all_reduce(Communicator& communicator, const at::Tensor& bucket,
                      const std::optional<at::Tensor>& residual,
                      std::shared_ptr<const BucketPlan> plan, float factor, uint32_t step,
                      uint16_t bucket_index, bool caller_waits,
                      const std::optional<at::Tensor>& velocity, float momentum, bool nesterov) {
  return start_all_reduce({bucket, residual, velocity}, {momentum, nesterov}, std::move(plan),
                          factor, {step, bucket_index},
                          [&](Job job) { communicator.submit(std::move(job), caller_waits); });
}

// One rank's end of a simulated group.
struct SimulatedCommunicator {
  std::shared_ptr<SimulatedGroup> group;
  int rank;
};

py::object all_reduce_simulated(SimulatedCommunicator& communicator, const at::Tensor& bucket,
                                const std::optional<at::Tensor>& residual,
                                std::shared_ptr<const BucketPlan> plan, float factor, uint32_t step,
                                uint16_t bucket_index, const std::optional<at::Tensor>& velocity,
                                float momentum, bool nesterov) {
  return start_all_reduce({bucket, residual, velocity}, {momentum, nesterov}, std::move(plan),
                          factor, {step, bucket_index}, [&](Job job) {
                            communicator.group->submit(communicator.rank, std::move(job));
                          });
}

py::object all_reduce_on_stream(StreamCommunicator& communicator, const at::Tensor& bucket,
                                const std::optional<at::Tensor>& residual,
                                const std::shared_ptr<const BucketPlan>& plan, float factor,
                                uint32_t step, uint16_t bucket_index, bool /*caller_waits*/,
                                const std::optional<at::Tensor>& velocity, float momentum,
                                bool nesterov) {
  const BucketTensors tensors{bucket, residual, velocity};
  check_bucket(tensors);
  TensorFuture result(bucket);
  {
    const py::gil_scoped_release no_gil;
    c10::OptionalStreamGuard guard;
    std::exception_ptr error;
    try {
      guard.reset_stream(communicator.all_reduce(tensors, {momentum, nesterov}, *plan, factor,
                                                 {step, bucket_index}));
    } catch (const std::exception&) {
      error = current_error_at(describe_place(communicator.rank(), {step, bucket_index}));
    }
    result.complete(error);
  }
  return python_future(result.future);
}

template <class T>
struct DeleteWithoutGil {
  void operator()(T* object) const {
    if constexpr (requires { object->is_inherited(); }) {
      if (object->is_inherited()) return;  // it would wait for threads that are not here
    }
    const py::gil_scoped_release no_gil;
    delete object;
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
  } catch (const PeerError& caught) {
    raise("PeerError", caught);
  } catch (const Error& caught) {
    raise("Error", caught);
  } catch (torch::PyTorchError& caught) {  // of a future
    PyErr_SetString(caught.python_type(), caught.what());
  }
}

py::dict measurements_dict(const Measurements& measurements) {
  py::dict dict;
  dict["wire_bytes"] = measurements.wire_bytes;
  dict["seconds_encode"] = measurements.seconds_encode;
  dict["seconds_decode"] = measurements.seconds_decode;
  dict["seconds_send"] = measurements.seconds_send;
  dict["seconds_wait"] = measurements.seconds_wait;
  return dict;
}

// (lane, step, bucket, name, begin in seconds of the monotonic clock, seconds, payload bytes)
py::list trace_list(const std::vector<LaneEvent>& events) {
  using Seconds = std::chrono::duration<double>;
  py::list list;
  for (const auto& [lane, exchange, event] : events) {
    list.append(py::make_tuple(lane, exchange.step, exchange.bucket, event.name,
                               Seconds(event.begin.time_since_epoch()).count(),
                               Seconds(event.end - event.begin).count(), event.bytes));
  }
  return list;
}

template <class T>
using Class = py::class_<T, std::unique_ptr<T, DeleteWithoutGil<T>>>;
using BackendPointer = c10::intrusive_ptr<c10d::Backend>;

// What both communicators have.
template <class T, class AllReduce>
void define_communicator(Class<T>& communicator, AllReduce&& all_reduce) {
  communicator
      .def("all_reduce", all_reduce, py::arg("bucket"), py::arg("residual"), py::arg("plan"),
           py::arg("factor"), py::arg("step"), py::arg("bucket_index"),
           py::arg("caller_waits") = false, py::arg("velocity") = std::nullopt,
           py::arg("momentum") = 0.0f, py::arg("nesterov") = false)
      .def("measurements",
           [](const T& self) { return measurements_dict(self.record().measurements()); })
      .def("start_trace", [](T& self) { self.record().start_trace(); })
      .def("stop_trace", [](T& self) { return trace_list(self.record().stop_trace()); })
      .def("abort", &T::abort, NoGil());
}

PYBIND11_MODULE(_C, module) {
  py::register_exception_translator(translate_error);

  module.attr("has_cuda") = has_cuda;
  module.attr("PAYLOAD_ALIGNMENT") = kSectionAlignment;
  module.attr("OPENING_RECORD_BYTES") = kRecordBytes;
  module.def("largest_opening_payload", largest_opening_payload, py::arg("world_size"));
  module.attr("SETTINGS_BUCKET") = kSettings;
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
  py::class_<CallWorkspace>(module, "CodecWorkspace")
      .def(py::init([](std::shared_ptr<ThreadPool> threads) {
             auto workspace = std::make_unique<CallWorkspace>();
             workspace->cpu.threads = std::move(threads);
             return workspace;
           }),
           py::arg("threads") = nullptr);
  module.def("payload_bytes", payload_bytes, py::arg("codecs"), py::arg("num_elements"),
             py::arg("sliced") = false, py::arg("runs") = RunPairs{});
  module.def("payload_num_elements", claimed_num_elements);
  module.def("encode", encode, py::arg("spec"), py::arg("tensor"), py::arg("residual"),
             py::arg("received"), py::arg("payload"), py::arg("workspace"),
             py::arg("sliced") = false, py::arg("sealed") = true,
             py::arg("velocity") = std::nullopt, NoGil());
  module.def("decode", decode, py::arg("spec"), py::arg("payload"), py::arg("out"),
             py::arg("workspace"), py::arg("sliced") = false, py::arg("sealed") = true, NoGil());
  module.def("streamed_zeros", streamed_zeros, py::arg("num_elements"));
  module.def("release_streamed", release_streamed, py::arg("part"));
  module.def("stream_copy", copy_streamed, py::arg("out"), py::arg("tensor"), py::arg("workspace"),
             NoGil());

  py::class_<BucketPlan, std::shared_ptr<BucketPlan>>(module, "BucketPlan")
      .def(py::init([](std::vector<CodecSpec> codecs, const RunPairs& runs,
                       const std::string& algorithm, std::shared_ptr<ThreadPool> threads) {
             return std::make_shared<BucketPlan>(BucketPlan{
                 std::move(codecs), to_runs(runs), &schedule(algorithm), std::move(threads)});
           }),
           py::arg("codecs"), py::arg("runs"), py::arg("algorithm"), py::arg("threads"));

  Class<Communicator> communicator(module, "Communicator");
  communicator
      .def(py::init([](const std::vector<BackendPointer>& backends, int num_lanes,
                       std::chrono::milliseconds timeout) {
             const py::gil_scoped_release no_gil;
             return std::unique_ptr<Communicator, DeleteWithoutGil<Communicator>>(
                 new Communicator(backends, num_lanes, timeout));
           }),
           py::arg("backends"), py::arg("num_lanes"), py::arg("timeout"))
      .def("check", &Communicator::check, py::arg("peer"))
      .def("fail", &Communicator::fail, py::arg("text"), NoGil());
  define_communicator(communicator, all_reduce);
  Class<StreamCommunicator> on_stream(module, "StreamCommunicator");
  on_stream.def(
      py::init([](const std::optional<BackendPointer>& backend, const at::Device& device) {
        return std::unique_ptr<StreamCommunicator, DeleteWithoutGil<StreamCommunicator>>(
            new StreamCommunicator(backend.value_or(nullptr), device));
      }),
      py::arg("backend"), py::arg("device"));
  on_stream.def("finish", &StreamCommunicator::finish, py::arg("seconds"), NoGil());
  define_communicator(on_stream, all_reduce_on_stream);

  py::class_<SimulatedGroup, std::shared_ptr<SimulatedGroup>>(module, "SimulatedGroup")
      .def(py::init<int>(), py::arg("world_size"));
  py::class_<SimulatedCommunicator>(module, "SimulatedCommunicator")
      .def(py::init([](std::shared_ptr<SimulatedGroup> group, int rank) {
             group->record(rank);  // checks the rank
             return SimulatedCommunicator{std::move(group), rank};
           }),
           py::arg("group"), py::arg("rank"))
      .def("all_reduce", all_reduce_simulated, py::arg("bucket"), py::arg("residual"),
           py::arg("plan"), py::arg("factor"), py::arg("step"), py::arg("bucket_index"),
           py::arg("velocity") = py::none(), py::arg("momentum") = 0.0f,
           py::arg("nesterov") = false)
      .def("measurements", [](const SimulatedCommunicator& self) {
        return measurements_dict(self.group->record(self.rank).measurements());
      });

  py::class_<TensorFuture>(module, "TensorFuture")
      .def(py::init<const at::Tensor&>(), py::arg("tensor"))
      .def_property_readonly("future",
                             [](const TensorFuture& self) { return python_future(self.future); })
      .def(
          "succeed", [](TensorFuture& self) { self.complete(nullptr); }, NoGil())
      .def("fail", &TensorFuture::fail, py::arg("error_type"), py::arg("message"), NoGil());
  module.def("failed_future", [](const std::string& type, const std::string& message) {
    return python_future(failed_future(type, message));
  });
}

}  // namespace
}  // namespace fastcomm
