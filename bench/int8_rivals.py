"""fastcomm's int8 encode against the same written in operations of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import fastcomm
from buffers import ADD_BYTES, BufferPool, Buffers
from codec_speed import moved_bytes
from fastcomm import _C
from measure import TakingTurns, forced_isa, median, spread

_BLOCK = 512
_SMALLEST_SCALE = 2.0**-100
_TOLERANCE = 1e-6

TorchEncode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Int8Row:
    """One way to write int8 with error feedback."""

    benchmark: str
    method: str
    isa: str
    threads: int
    num_elements: int
    repetitions: int
    seconds_median: float
    spread_ratio: float
    seconds_ratio_to_fastcomm: float
    ratio_to_add: float
    buffer_sets: str
    correct: bool
    conservation_error: float


def torch_encode(
    gradient: torch.Tensor, residual: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    """Encode rows of 512 elements; without header, checksum and care for NaN and Inf."""
    value = gradient + residual
    scale = value.abs().amax(1, keepdim=True).div(127).clamp_min(_SMALLEST_SCALE)
    code = torch.round(value / scale)
    codes.copy_(code)
    scales.copy_(scale)
    torch.sub(value, code * scale, out=residual)


def measure_int8(
    isa: str, threads: int, pool: BufferPool, repetitions: int, is_compiled: bool
) -> list[Int8Row]:
    """Measure fastcomm, torch and, on request, torch.compile (compiling takes half a minute)."""
    spec, workspace = fastcomm.codec("int8").spec, _C.CodecWorkspace(_C.ThreadPool(threads))
    torch.set_num_threads(threads)
    num_rows = pool.sets[0].gradient.numel() // _BLOCK
    num_elements = num_rows * _BLOCK
    functions: dict[str, TorchEncode] = {"torch": torch_encode}
    if is_compiled:
        torch._dynamo.reset()  # compiled code has the number of threads in it
        functions["torch.compile"] = torch.compile(torch_encode)
    scales = {name: torch.ones(num_rows, 1) for name in functions}

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:num_elements].view(num_rows, _BLOCK)

    def codes(b: Buffers) -> torch.Tensor:
        return rows(b.payload.view(torch.int8))

    def in_fastcomm(b: Buffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [], b.payload, workspace, sliced=True)

    def in_torch(name: str) -> Callable[[Buffers], None]:
        return lambda b: functions[name](rows(b.gradient), rows(b.residual), codes(b), scales[name])

    methods = {"fastcomm": in_fastcomm, **{name: in_torch(name) for name in functions}}
    with forced_isa(isa):
        sets = pool.for_payloads(spec, workspace)
        turns = TakingTurns({"add": Buffers.add, **methods}, sets)
        turns.repeat(repetitions - 1)
        last = {name: turns.next_set(name) for name in methods}
        previous = {name: b.residual.clone() for name, b in last.items()}
        turns.repeat(1)

    moved = moved_bytes("encode", num_elements, 4, sets[0].payload.numel())
    add_seconds, fastest = median(turns.seconds["add"]), median(turns.seconds["fastcomm"])
    add_bytes = ADD_BYTES * num_elements
    table = []
    for name, buffers in last.items():
        delivered = torch.empty_like(buffers.residual)
        if name == "fastcomm":
            _C.decode(spec, buffers.payload, delivered, workspace, sliced=True)
        else:
            torch.mul(codes(buffers), scales[name], out=rows(delivered))
        value = rows(buffers.gradient + previous[name]).double()
        total = rows(delivered).double() + rows(buffers.residual)
        error = ((total - value).norm() / value.norm()).item()
        seconds = turns.seconds[name]
        table.append(
            Int8Row(
                benchmark="int8",
                method=name,
                isa=isa if name == "fastcomm" else "",
                threads=threads,
                num_elements=num_elements,
                repetitions=len(seconds),
                seconds_median=median(seconds),
                spread_ratio=spread(seconds),
                seconds_ratio_to_fastcomm=median(seconds) / fastest,
                ratio_to_add=moved / add_bytes * add_seconds / median(seconds),
                buffer_sets=pool.description,
                correct=error <= _TOLERANCE,
                conservation_error=error,
            )
        )
    return table
