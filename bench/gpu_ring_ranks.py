"""One rank of the all-reduces of bench/gpu.py: several ranks share the GPUs of this machine."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import fastcomm
from fastcomm.reduce import measurements
from launch import write_rows
from measure import REPOSITORY, median, spread
from rank_checks import KnownGradients, all_identical, slowest

sys.path.append(str(REPOSITORY / "tests"))
from gpu_exchanges import nccl_environment

# Of the exact average; one call, without what error feedback delivers later.
_MOST_ERROR = {"fp32": 1e-6, "int8": 0.02, "int4": 0.3}

Call = Callable[[torch.Tensor], None]


@dataclass(frozen=True)
class GpuAllReduceRow:
    """One method at one size; bench/README.md defines the words."""

    benchmark: str
    method: str
    backend: str
    world_size: int
    num_gpus: int
    size_bytes: int
    num_elements: int
    repetitions: int
    seconds_median: float
    spread_ratio: float
    algbw_bytes_per_second: float
    wire_bytes: int | None
    seconds_encode: float | None
    seconds_decode: float | None
    seconds_wait: float | None
    relative_error: float
    identical: bool
    correct: bool


class Exchange:
    """What all methods have in common: the group, the device, and the gradients."""

    def __init__(self, settings: dict[str, Any]) -> None:
        rank = int(os.environ["RANK"])
        self.backend: str = settings["backend"]
        self.num_gpus = torch.cuda.device_count()
        self.device = torch.device("cuda", rank % self.num_gpus)
        torch.cuda.set_device(self.device)
        timeout = timedelta(seconds=settings["group_seconds"])
        dist.init_process_group("gloo", timeout=timeout)
        self.group = dist.group.WORLD
        if self.backend == "nccl":
            if self.num_gpus < dist.get_world_size():
                os.environ.update(nccl_environment(rank, settings["nccl_way"]))
            self.group = dist.new_group(backend="nccl", timeout=timeout)
        self.world_size = dist.get_world_size()
        self.gradients = KnownGradients(rank, self.world_size, max(settings["sizes"]))
        self.mine = self.gradients.mine.to(self.device)

    def method(self, name: str, residual: torch.Tensor) -> Call:
        """Return what averages a tensor: a codec by its name, or PyTorch's all-reduce."""

        def plain(tensor: torch.Tensor) -> None:
            dist.all_reduce(tensor, group=self.group)
            tensor /= self.world_size

        def compressed(tensor: torch.Tensor) -> None:
            residual.zero_()
            held = residual if fastcomm.codec(name).loses_bits else None
            op = dist.ReduceOp.AVG
            fastcomm.all_reduce(tensor, op=op, group=self.group, codec=name, residual=held)

        return plain if name == self.backend else compressed

    def measure(self, name: str, num_elements: int, settings: dict[str, Any]) -> GpuAllReduceRow:
        """Measure one method at one size, as often as fits into its time."""
        call = self.method(name, torch.zeros(num_elements, device=self.device))
        buffer = torch.empty(num_elements, device=self.device)
        for _ in range(2):
            estimate = slowest([self._timed(call, buffer)])[0]
        wanted = int(settings["seconds_per_method"] / estimate)
        before = measurements(self.group)
        seconds = [self._timed(call, buffer) for _ in range(max(3, min(30, wanted)))]
        spent = {
            key: (value - before.get(key, 0)) / len(seconds)
            for key, value in measurements(self.group).items()
        }
        seconds = slowest(seconds)
        if name == self.backend:
            spent = {}
        result = buffer.cpu()
        error, norm = self.gradients.squared_error(result)
        relative_error = (error / norm) ** 0.5
        identical = all_identical([result])
        return GpuAllReduceRow(
            benchmark="gpu_allreduce",
            method=name,
            backend=self.backend,
            world_size=self.world_size,
            num_gpus=self.num_gpus,
            size_bytes=4 * num_elements,
            num_elements=num_elements,
            repetitions=len(seconds),
            seconds_median=median(seconds),
            spread_ratio=spread(seconds),
            algbw_bytes_per_second=4 * num_elements / median(seconds),
            wire_bytes=round(spent["wire_bytes"]) if spent else None,
            seconds_encode=spent.get("seconds_encode"),
            seconds_decode=spent.get("seconds_decode"),
            seconds_wait=spent.get("seconds_wait"),
            relative_error=relative_error,
            identical=identical,
            correct=identical and relative_error <= _MOST_ERROR.get(name, 1.0),
        )

    def _timed(self, call: Call, buffer: torch.Tensor) -> float:
        buffer.copy_(self.mine[: buffer.numel()])
        torch.cuda.synchronize()
        dist.barrier()
        start = time.perf_counter()
        call(buffer)
        torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    """Measure as one rank; rank 0 hands over the rows."""
    settings = json.loads(sys.argv[1])
    exchange = Exchange(settings)
    rows = [
        asdict(exchange.measure(name, num_elements, settings))
        for num_elements in settings["sizes"]
        for name in [exchange.backend, *settings["codecs"]]
    ]
    dist.barrier()
    if dist.get_rank() == 0:
        write_rows(settings, rows)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
