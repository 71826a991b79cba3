"""One rank of bench/allreduce.py: measures the methods, size by size, in turns."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from fastcomm import _C
from fastcomm.reduce import measurements
from launch import write_rows
from measure import median, spread
from methods import PEERS, SUMS, Compressed, Synchronize, make_peer, peer_wire_bytes
from rank_checks import KnownGradients, all_identical, slowest

# Several calls in a row are timed together, until they take about so long.
_TIMED_SECONDS = 0.01
_MOST_CALLS = 16
# Of each end of the bucket, to check that delivered + residuals = gradients.
_CHECKED_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class AllReduceRow:
    """One method at one size; README.md defines the words."""

    benchmark: str
    method: str
    algorithm: str
    world_size: int
    rate_bits_per_second: int | None
    size_bytes: int
    num_elements: int
    repetitions: int
    seconds_median: float
    seconds_min: float
    spread_ratio: float
    speedup_over_gloo: float | None
    algbw_bytes_per_second: float
    busbw_bytes_per_second: float
    wire_bytes: int | None
    ideal_seconds: float | None
    fraction_of_ideal: float | None
    seconds_encode: float | None
    seconds_decode: float | None
    seconds_wait: float | None
    relative_error: float | None
    conservation_error: float | None
    identical: bool


class Measured:
    """A method, and what was seen of it at one size."""

    def __init__(self, name: str, synchronize: Synchronize) -> None:
        self.name = name
        self.synchronize = synchronize
        self.num_calls = 1
        self.seconds: list[float] = []

    def run(self, buffers: list[torch.Tensor], gradients: KnownGradients, num_calls: int) -> float:
        """Synchronize so many fresh buffers one after another; return the seconds per call."""
        for buffer in buffers[:num_calls]:
            buffer.copy_(gradients.mine[: buffer.numel()])
        if isinstance(self.synchronize, Compressed):
            self.synchronize.clear()
        dist.barrier()
        start = time.perf_counter()
        for buffer in buffers[:num_calls]:
            self.synchronize(buffer)
        return (time.perf_counter() - start) / num_calls


def relative_error(result: torch.Tensor, gradients: KnownGradients) -> float:
    """Return the norm of result - average over the norm of the average."""
    error, norm = gradients.squared_error(result)
    return math.sqrt(error / norm)


def conservation_error(
    result: torch.Tensor, residual: torch.Tensor | None, gradients: KnownGradients
) -> float | None:
    """Return how far delivered + residuals is from the gradients, over the gradients' norm."""
    if residual is None:
        return None
    n = result.numel()
    worst = 0.0
    for begin in {0, max(0, n - _CHECKED_ELEMENTS)}:
        end = min(n, begin + _CHECKED_ELEMENTS)
        left_out = residual[begin:end].double()
        dist.all_reduce(left_out)
        expected = gradients.average[torch.arange(begin, end) % len(gradients.average)]
        delivered = result[begin:end].double() + left_out / dist.get_world_size()
        worst = max(worst, float((delivered - expected).norm() / expected.norm()))
    return worst


def measure_size(
    num_elements: int, methods: list[Measured], gradients: KnownGradients, settings: dict[str, Any]
) -> list[AllReduceRow]:
    """Measure all methods at one size; the methods take turns."""
    buffers = [torch.empty(num_elements)]
    estimates = {}
    for method in methods:
        warmup = 4 if method.name.startswith("powersgd") else 2
        for _ in range(warmup):
            estimates[method.name] = slowest([method.run(buffers, gradients, 1)])[0]
    for method in methods:
        wanted = int(_TIMED_SECONDS / estimates[method.name])
        method.num_calls = max(1, min(_MOST_CALLS, wanted))
        method.seconds = []
    buffers += [torch.empty(num_elements) for _ in range(max(m.num_calls for m in methods) - 1)]
    turn_seconds = sum(estimates[m.name] * m.num_calls for m in methods)
    repetitions = int(settings["seconds_per_size"] / turn_seconds)
    repetitions = max(settings["fewest"], min(settings["most"], repetitions))

    results: dict[str, dict[str, Any]] = {method.name: {} for method in methods}
    for repetition in range(repetitions):
        for method in methods:
            before = measurements()
            method.seconds.append(method.run(buffers, gradients, method.num_calls))
            spent = {key: value - before.get(key, 0) for key, value in measurements().items()}
            if repetition < repetitions - 1:
                continue
            result = buffers[method.num_calls - 1]
            if method.name in SUMS:
                result /= dist.get_world_size()
            ours = isinstance(method.synchronize, Compressed)
            results[method.name] = {
                "spent": {k: v / method.num_calls for k, v in spent.items()} if ours else {},
                "identical": all_identical([result]),
                "relative_error": None
                if method.name.startswith("powersgd")
                else relative_error(result, gradients),
                "conservation_error": conservation_error(
                    result, method.synchronize.residual(num_elements), gradients
                )
                if isinstance(method.synchronize, Compressed) and method.num_calls == 1
                else None,
            }
    for method in methods:
        method.seconds = slowest(method.seconds)
    gloo = next((m.seconds for m in methods if m.name == "gloo"), None)
    return [_row(m, results[m.name], gloo, num_elements, settings) for m in methods]


def _row(
    method: Measured,
    result: dict[str, Any],
    gloo: list[float] | None,
    num_elements: int,
    settings: dict[str, Any],
) -> AllReduceRow:
    world_size = dist.get_world_size()
    seconds = median(method.seconds)
    spent = result["spent"]
    if method.name in PEERS:
        wire_bytes = peer_wire_bytes(method.name, num_elements, world_size)
    else:
        wire_bytes = round(spent["wire_bytes"])
    rate = settings["bits_per_second"]
    ideal = None if rate is None or wire_bytes is None else wire_bytes * 8 / rate
    algbw = num_elements * 4 / seconds
    return AllReduceRow(
        benchmark="allreduce",
        method=method.name,
        algorithm="" if method.name in PEERS else settings["algorithm"],
        world_size=world_size,
        rate_bits_per_second=rate,
        size_bytes=num_elements * 4,
        num_elements=num_elements,
        repetitions=len(method.seconds) * method.num_calls,
        seconds_median=seconds,
        seconds_min=min(method.seconds),
        spread_ratio=spread(method.seconds),
        speedup_over_gloo=None
        if gloo is None
        else median([g / s for g, s in zip(gloo, method.seconds, strict=True)]),
        algbw_bytes_per_second=algbw,
        busbw_bytes_per_second=algbw * 2 * (world_size - 1) / world_size,
        wire_bytes=wire_bytes,
        ideal_seconds=ideal,
        fraction_of_ideal=None if ideal is None else ideal / seconds,
        seconds_encode=spent.get("seconds_encode"),
        seconds_decode=spent.get("seconds_decode"),
        seconds_wait=spent.get("seconds_wait"),
        relative_error=result["relative_error"],
        conservation_error=result["conservation_error"],
        identical=result["identical"],
    )


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure everything; called on each rank. Returns the rows, the same on all ranks."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    sizes = [size // 4 for size in settings["sizes"]]
    gradients = KnownGradients(dist.get_rank(), dist.get_world_size(), max(sizes))
    residual = _C.streamed_zeros(max(sizes))  # as the hook has it
    methods = [
        Measured(
            name,
            make_peer(name) if name in PEERS else Compressed(name, settings["algorithm"], residual),
        )
        for name in settings["methods"]
    ]
    rows = []
    for num_elements in sizes:
        rows += [asdict(r) for r in measure_size(num_elements, methods, gradients, settings)]
    dist.barrier()
    dist.destroy_process_group()
    return rows


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    measured = measure(given)
    if os.environ["RANK"] == "0":
        write_rows(given, measured)
