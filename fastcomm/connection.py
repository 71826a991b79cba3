"""What exchanges a rank's buckets with those of the others, real or simulated."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
import torch.distributed as dist

from fastcomm import _C
from fastcomm.codecs import Fp32
from fastcomm.group import ConnectedGroup
from fastcomm.runs import Runs, bucket_plan
from fastcomm.simulated_rank import SimulatedRank

Event: TypeAlias = tuple[int, int, int, str, float, float, int]  # of _C.Communicator.stop_trace


class Connection(Protocol):
    """What :class:`ConnectedGroup` offers, whose docstrings say what these are."""

    rank: int
    world_size: int

    def connect(self, device: torch.device) -> None: ...  # noqa: D102
    def check_agreement(self, settings: dict[str, str]) -> None: ...  # noqa: D102
    def algorithm(self, algorithm: str, runs: Runs, device: torch.device) -> str: ...  # noqa: D102
    def threads(  # noqa: D102
        self, num_threads: int | None, device: torch.device
    ) -> _C.ThreadPool | None: ...
    def all_reduce(  # noqa: D102
        self,
        bucket: torch.Tensor,
        residual: torch.Tensor | None,
        plan: _C.BucketPlan,
        factor: float,
        step: int,
        bucket_index: int = 0,
        *,
        velocity: torch.Tensor | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> torch.futures.Future[torch.Tensor]: ...
    def measurements(self) -> dict[str, float]: ...  # noqa: D102
    def start_trace(self) -> None: ...  # noqa: D102
    def stop_trace(self) -> list[Event]: ...  # noqa: D102


def sum_over_ranks(
    numbers: torch.Tensor, group: Connection, step: int, index: int
) -> torch.futures.Future[torch.Tensor]:
    """Start to replace a few numbers, in place, by their sums over all ranks; return their future.

    ``index`` stands for the index of a bucket, and must be none's.
    """
    runs: Runs = [(numbers.numel(), Fp32())]
    algorithm = group.algorithm("auto", runs, numbers.device)
    plan = bucket_plan(runs, algorithm, group.threads(1, numbers.device))
    return group.all_reduce(numbers, None, plan, 1.0, step, index)


def connect(process_group: dist.ProcessGroup | SimulatedRank) -> Connection:
    """Connect this rank with the others of its group. Collective."""
    if isinstance(process_group, SimulatedRank):
        return process_group.connect()
    return ConnectedGroup(process_group)
