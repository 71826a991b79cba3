"""Codecs on a GPU work on the current stream, and their kernels fit into CUDA graphs."""

from dataclasses import dataclass

import pytest
import torch

import fastcomm
import on_gpu
from fastcomm import _C
from on_gpu import CODECS, CPU, GPU, same_bits

pytestmark = on_gpu.marks()

SIZE = 1_000_003


@dataclass
class Kernels:
    """Encode with a received payload and a residual, then decode: kernels alone, fixed memory."""

    name: str

    def __post_init__(self) -> None:
        codec = fastcomm.codec(self.name)
        self.spec, self.workspace = codec.spec, _C.CodecWorkspace()
        size = _C.payload_bytes([self.spec], SIZE, sliced=True)
        self.gradient = torch.zeros(SIZE, device=GPU)
        self.residual = torch.zeros(SIZE, device=GPU)
        self.out = torch.zeros(SIZE, device=GPU)
        self.payload = torch.zeros(size, dtype=torch.uint8, device=GPU)
        self.received = torch.zeros(size, dtype=torch.uint8, device=GPU)
        other = torch.zeros(size, dtype=torch.uint8)
        _C.encode(self.spec, on_gpu.gaussian(SIZE, 9), None, [], other, _C.CodecWorkspace(), True)
        self.received.copy_(other)
        self.received_on_cpu = other

    def run(self) -> None:
        """Enqueue everything on the current stream."""
        received = [self.received]
        _C.encode(
            self.spec,
            self.gradient,
            self.residual,
            received,
            self.payload,
            self.workspace,
            True,
            False,
        )
        _C.decode(self.spec, self.payload, self.out, self.workspace, True, False)

    def check(self, gradient: torch.Tensor, residual: torch.Tensor) -> None:
        """Compare with the CPU: ``residual``, on the CPU, becomes what it should be now."""
        workspace = _C.CodecWorkspace()
        payload = torch.zeros_like(self.received_on_cpu)
        out = torch.zeros(SIZE)
        _C.encode(
            self.spec, gradient, residual, [self.received_on_cpu], payload, workspace, True, True
        )
        _C.decode(self.spec, payload, out, workspace, True, True)
        assert same_bits(self.out.cpu(), out), f"{self.name}: wrong result"
        assert same_bits(self.residual.cpu(), residual), f"{self.name}: wrong residual"


@pytest.mark.parametrize("name", CODECS)
def test_encode_and_decode_follow_what_is_on_their_stream(name: str) -> None:
    """The gradient comes late on a side stream; nothing orders it but the stream itself."""
    codec = fastcomm.codec(name)
    gradient = on_gpu.gaussian(SIZE)
    ready = gradient.to(GPU)
    residual = torch.zeros(SIZE, device=GPU)
    torch.cuda.synchronize()
    side = on_gpu.new_stream()
    with torch.cuda.stream(side):
        late = torch.full((SIZE,), 7.0, device=GPU)
        codec.decode(codec.encode(late))  # the first calls on a stream wait for their memory
        on_gpu.keep_stream_busy()
        late.copy_(ready)
        payload = codec.encode(late, residual)
        out = codec.decode(payload)
        late.fill_(5.0)  # the encoding has read it before
    torch.cuda.current_stream().wait_stream(side)
    expected_residual = torch.zeros(SIZE)
    expected = codec.encode(gradient, expected_residual)
    assert torch.equal(payload.cpu(), expected)
    assert same_bits(out.cpu(), codec.decode(expected))
    assert same_bits(residual.cpu(), expected_residual)


@pytest.mark.parametrize("name", CODECS)
def test_kernels_are_only_enqueued(name: str) -> None:
    kernels = Kernels(name)
    side = on_gpu.new_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        kernels.run()  # what is allocated once
        side.synchronize()
        on_gpu.keep_stream_busy()
        kernels.run()
        assert not side.query(), "the host waited for the GPU"
    side.synchronize()


def test_streams_with_workspaces_of_their_own_do_not_disturb_each_other() -> None:
    """All codecs at once, in three rounds."""
    of_streams = [(on_gpu.new_stream(), Kernels(name)) for name in CODECS]
    gradients = [on_gpu.gaussian(SIZE, seed) for seed in range(3)]
    ready = [gradient.to(GPU) for gradient in gradients]
    torch.cuda.synchronize()
    for gradient in ready:
        for stream, kernels in of_streams:
            with torch.cuda.stream(stream):
                kernels.gradient.copy_(gradient)
                kernels.run()
    torch.cuda.synchronize()
    for _, kernels in of_streams:
        residual = torch.zeros(SIZE)
        for gradient in gradients[:-1]:
            payload = torch.zeros_like(kernels.received_on_cpu)
            received = [kernels.received_on_cpu]
            workspace = _C.CodecWorkspace()
            _C.encode(kernels.spec, gradient, residual, received, payload, workspace, True)
        kernels.check(gradients[-1], residual)


@pytest.mark.parametrize("name", CODECS)
def test_a_graph_replays_encode_and_decode_with_new_inputs(name: str) -> None:
    kernels = Kernels(name)
    side = on_gpu.new_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        kernels.gradient.copy_(on_gpu.gaussian(SIZE))
        for _ in range(2):
            kernels.run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        kernels.run()
    for seed in (1, 2, 3):
        gradient, residual = on_gpu.gaussian(SIZE, seed), 0.1 * on_gpu.gaussian(SIZE, seed + 10)
        kernels.gradient.copy_(gradient)
        kernels.residual.copy_(residual)
        kernels.out.fill_(7.0)
        graph.replay()
        torch.cuda.synchronize()
        kernels.check(gradient, residual)


def test_devices_of_results_are_those_of_their_inputs() -> None:
    codec = fastcomm.codec("int8")
    for device in (CPU, GPU):
        payload = codec.encode(torch.ones(10, device=device))
        assert payload.device.type == codec.decode(payload).device.type == device.type
