"""What the tests on a GPU share: when they run, and one codec call on either device.

The CPU is what they compare with: its codecs are compared with the oracle elsewhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import fastcomm
import oracle
from fastcomm import _C
from inputs import INPUTS, residual_for
from oracle_dense import FORMATS
from training import mlp

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Every codec, and the random ones. None of their seeds is 0.
CODECS = [*FORMATS, "topk:0.001", "topk:0.01", "topk:0.1"]
ENCODERS = [*CODECS, *oracle.STOCHASTIC_CODECS, "int2:seed=4294967295", "sign:seed=1"]
# Around the blocks (256, 512), the sub-blocks of top-k (65536), and one that fills the GPU. Every
# kind of input is tried on the small ones.
SMALL_SIZES = [0, 1, 2, 3, 7, 17, 255, 256, 257, 511, 512, 513, 1000, 4097]
LARGE_SIZES = [65536 + 3, 1_000_003]


def obstacle() -> str:
    """Return why there can be no test on a GPU here, nothing if there can."""
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    if not getattr(_C, "has_cuda", False):
        return "this fastcomm was built without CUDA"
    return ""


def marks() -> list[pytest.MarkDecorator]:
    """Return the marks of a module of tests on a GPU; skip the module where there can be none."""
    reason = obstacle()
    if reason:
        pytest.skip(reason, allow_module_level=True)
    return [pytest.mark.gpu, pytest.mark.timeout(120)]


@dataclass(frozen=True)
class Input:
    """What a codec is given, on the CPU."""

    gradient: torch.Tensor
    residual: torch.Tensor | None
    received: list[torch.Tensor]  # payloads
    what: str


@dataclass(frozen=True)
class Output:
    """What a codec made of it, on the CPU, whichever device it worked on."""

    payload: torch.Tensor
    residual: torch.Tensor | None


def make_input(
    name: str, make: str, size: int, dtype: torch.dtype, feedback: bool, num_received: int = 0
) -> Input:
    """Return an input of one of the kinds of inputs.py."""
    random = np.random.default_rng(size)
    values = INPUTS[make](random, size)
    residual = torch.from_numpy(residual_for(values, random)) if feedback else None
    others = [torch.from_numpy(INPUTS[make](random, size)) for _ in range(num_received)]
    codec = fastcomm.codec(name)
    return Input(
        torch.from_numpy(values).to(dtype),
        residual,
        [codec.encode(other) for other in others],
        f"{size} elements of {dtype}, {make}, feedback {feedback}, {num_received} received",
    )


def inputs_of(name: str, dtype: torch.dtype, feedback: bool, num_received: int) -> Iterator[Input]:
    """Yield every kind of small input, and Gaussian and mixed large ones."""
    for make, size in [*product(INPUTS, SMALL_SIZES), *product(["gaussian"], LARGE_SIZES)]:
        yield make_input(name, make, size, dtype, feedback, num_received)


def feedbacks_of(name: str) -> list[bool]:
    """Return whether a codec is to be tried without and with a residual."""
    return [False] if fastcomm.codec(name).is_stochastic else [False, True]


def shifted(tensor: torch.Tensor, device: torch.device, offset: int) -> torch.Tensor:
    """Return a copy on ``device`` that starts ``offset`` elements into its memory."""
    memory = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device=device)
    return memory[offset:].copy_(tensor)


def encode(
    name: str,
    given: Input,
    device: torch.device,
    *,
    offset: int = 0,
    sliced: bool = False,
    sealed: bool = True,
) -> Output:
    """Encode on ``device``, with gradient and residual ``offset`` elements into their memory."""
    spec = fastcomm.codec(name).spec
    residual = None if given.residual is None else shifted(given.residual, device, offset)
    size = _C.payload_bytes([spec], given.gradient.numel(), sliced)
    payload = torch.full((size,), 0xA5, dtype=torch.uint8, device=device)
    _C.encode(
        spec,
        shifted(given.gradient, device, offset),
        residual,
        [other.to(device) for other in given.received],
        payload,
        _C.CodecWorkspace(),
        sliced,
        sealed,
    )
    return Output(payload.cpu(), None if residual is None else residual.cpu())


def decode(
    name: str,
    payload: torch.Tensor,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    offset: int = 0,
    sliced: bool = False,
) -> torch.Tensor:
    """Decode on ``device``, to where something else was; return a copy on the CPU."""
    out = shifted(torch.full((size,), 7.0, dtype=dtype), device, offset)
    spec = fastcomm.codec(name).spec
    _C.decode(spec, payload.to(device), out, _C.CodecWorkspace(), sliced)
    return out.cpu()


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Compare bit for bit: a result that is NaN has the same bits everywhere, too."""
    if actual.dtype != expected.dtype:
        return False
    words = torch.int32 if actual.dtype == torch.float32 else torch.int16
    return torch.equal(actual.view(words), expected.view(words))


def assert_same_output(actual: Output, expected: Output, what: str) -> None:
    """Compare payload and residual bit for bit."""
    differing = (actual.payload != expected.payload).nonzero().flatten()
    assert differing.numel() == 0, (
        f"{differing.numel()} of {expected.payload.numel()} payload bytes differ, the first ones "
        f"{differing[:5].tolist()}: {what}"
    )
    if expected.residual is not None:
        assert actual.residual is not None
        bits = [t.view(torch.int32) for t in (actual.residual, expected.residual)]
        differing = (bits[0] != bits[1]).nonzero().flatten()
        assert differing.numel() == 0, (
            f"{differing.numel()} residuals differ, the first ones {differing[:5].tolist()}: {what}"
        )


def gaussian(size: int, seed: int = 0) -> torch.Tensor:
    """Return normally distributed float32 on the CPU."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def new_stream() -> torch.cuda.Stream:
    """Return a stream beside the current one."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def keep_stream_busy() -> None:
    """Let the current stream do nothing for about a tenth of a second."""
    torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]


def to_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same on the CPU."""
    return {name: tensor.cpu() for name, tensor in tensors.items()}


class OnGpu(nn.Sequential):
    """Layers on the GPU between inputs and outputs on the CPU: fits the helpers of training.py."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(*layers)
        self.to(GPU)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs, on the CPU."""
        value = inputs.to(GPU)
        for layer in self:
            value = layer(value)
        return value.to(CPU)


def gpu_mlp(width: int = 150, dtype: torch.dtype = torch.float32) -> OnGpu:
    """Return the model of training.py on the GPU; its parameters have the same names."""
    return OnGpu(list(mlp(width, dtype=dtype)))
