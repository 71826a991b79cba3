"""fastcomm on a GPU against other ways to write it: top-k by torch.topk, int8 by torch and Triton.

The rivals do less: torch.topk only finds and gathers the largest of |gradient|, and none writes a
payload or takes care of NaN and Inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import fastcomm
from codec_speed import moved_bytes
from fastcomm import _C
from gpu_timing import COPY_BYTES, GpuBuffers, GpuPool, GpuTurns, Operation, relative_error
from int8_rivals import TorchEncode, torch_encode
from measure import median, spread

_BLOCK = 512
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class GpuTopKRow:
    """Selections of the k largest."""

    benchmark: str
    codec: str
    num_elements: int
    k: int
    repetitions: int
    seconds_median: float
    spread_ratio: float
    seconds_torch_topk: float
    speedup_over_torch_topk: float
    moved_bytes: int
    copy_bytes_per_second: float
    ratio_to_copy: float
    entries: int
    is_exact_k: bool
    conservation_error: float
    correct: bool


@dataclass(frozen=True)
class GpuInt8Row:
    """One way to write int8 with error feedback."""

    benchmark: str
    method: str
    num_elements: int
    repetitions: int
    seconds_median: float
    spread_ratio: float
    seconds_ratio_to_fastcomm: float
    copy_bytes_per_second: float
    ratio_to_copy: float
    conservation_error: float
    correct: bool


def measure_topk(codec: fastcomm.Codec, pool: GpuPool, repetitions: int) -> GpuTopKRow:
    """Measure one density."""
    assert isinstance(codec, fastcomm.TopK)
    spec, workspace = codec.spec, _C.CodecWorkspace()
    k = max(1, math.floor(codec.density * pool.num_elements + 0.5))

    def encode(b: GpuBuffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [], b.payload, workspace, False, False)

    def torch_topk(b: GpuBuffers) -> None:
        indices = torch.topk(b.gradient.abs(), k, sorted=False).indices
        b.gradient.gather(0, indices)

    sets = pool.for_payloads(spec, sliced=False)
    turns = GpuTurns({"copy": GpuBuffers.copy, "encode": encode}, sets)
    turns.repeat(repetitions)
    rivals = GpuTurns({"torch": torch_topk}, sets, warmup=1)
    rivals.repeat(5)

    last = sets[0]
    last.residual.zero_()
    _C.encode(spec, last.gradient, last.residual, [], last.payload, workspace)
    last.out.fill_(float("nan"))
    _C.decode(spec, last.payload, last.out, workspace)
    error = relative_error(last.out, last.residual, last.gradient)
    entries = int(last.out.count_nonzero())
    # All that was sent is at least as large as all that was not: up to what bf16 rounds.
    smallest = last.gradient[last.out != 0].abs().min()
    is_exact_k = entries == k and bool(last.gradient[last.out == 0].abs().max() <= smallest)
    seconds, copy = turns.seconds["encode"], median(turns.seconds["copy"])
    moved = moved_bytes("encode", pool.num_elements, 4, last.payload.numel())
    copy_rate = COPY_BYTES * pool.num_elements / copy
    torch_seconds = median(rivals.seconds["torch"])
    return GpuTopKRow(
        benchmark="gpu_topk",
        codec=str(codec),
        num_elements=pool.num_elements,
        k=k,
        repetitions=len(seconds),
        seconds_median=median(seconds),
        spread_ratio=spread(seconds),
        seconds_torch_topk=torch_seconds,
        speedup_over_torch_topk=torch_seconds / median(seconds),
        moved_bytes=moved,
        copy_bytes_per_second=copy_rate,
        ratio_to_copy=moved / median(seconds) / copy_rate,
        entries=entries,
        is_exact_k=is_exact_k,
        conservation_error=error,
        correct=error == 0 and is_exact_k,
    )


def int8_functions() -> dict[str, TorchEncode]:
    """Return the rivals that this machine can run."""
    functions: dict[str, TorchEncode] = {"torch": torch_encode}
    try:
        from gpu_int8_triton import triton_encode
    except ImportError:
        return functions
    return {**functions, "Triton": triton_encode}


def measure_int8(pool: GpuPool, repetitions: int) -> Iterator[GpuInt8Row]:
    """Measure fastcomm, torch, and Triton where it is installed."""
    spec, workspace = fastcomm.codec("int8").spec, _C.CodecWorkspace()
    num_rows = pool.num_elements // _BLOCK
    num_elements = num_rows * _BLOCK
    functions = int8_functions()
    scales = {name: torch.ones(num_rows, 1, device="cuda") for name in functions}

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:num_elements].view(num_rows, _BLOCK)

    def codes(b: GpuBuffers) -> torch.Tensor:
        return rows(b.payload.view(torch.int8))

    def in_fastcomm(b: GpuBuffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [], b.payload, workspace, False, False)

    def by(name: str) -> Callable[[GpuBuffers], None]:
        return lambda b: functions[name](rows(b.gradient), rows(b.residual), codes(b), scales[name])

    methods: dict[str, Operation] = {"fastcomm": in_fastcomm, **{n: by(n) for n in functions}}
    sets = pool.for_payloads(spec, sliced=False)
    turns = GpuTurns({"copy": GpuBuffers.copy, **methods}, sets)
    turns.repeat(repetitions)
    copy_rate = COPY_BYTES * pool.num_elements / median(turns.seconds["copy"])
    fastest = median(turns.seconds["fastcomm"])
    moved = moved_bytes("encode", pool.num_elements, 4, sets[0].payload.numel())
    for name, method in methods.items():
        last = sets[0]
        last.residual.zero_()
        if name == "fastcomm":
            _C.encode(spec, last.gradient, last.residual, [], last.payload, workspace)
            _C.decode(spec, last.payload, last.out, workspace)
        else:
            method(last)
            torch.mul(codes(last), scales[name], out=rows(last.out))
        parts = (tensor[:num_elements] for tensor in (last.out, last.residual, last.gradient))
        error = relative_error(*parts)
        seconds = turns.seconds[name]
        yield GpuInt8Row(
            benchmark="gpu_int8",
            method=name,
            num_elements=pool.num_elements,
            repetitions=len(seconds),
            seconds_median=median(seconds),
            spread_ratio=spread(seconds),
            seconds_ratio_to_fastcomm=median(seconds) / fastest,
            copy_bytes_per_second=copy_rate,
            ratio_to_copy=moved / median(seconds) / copy_rate,
            conservation_error=error,
            correct=error <= _TOLERANCE,
        )
