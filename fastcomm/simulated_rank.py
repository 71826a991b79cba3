"""What stands for a process group and its connections where ranks are simulated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastcomm import _C
from fastcomm.algorithms import choose_algorithm
from fastcomm.runs import Runs


@dataclass(frozen=True)
class SimulatedBucket:
    """What :class:`HookState` uses of DDP's GradBucket."""

    gradients: torch.Tensor
    of_parameters: list[torch.Tensor]
    ends_step: bool

    def buffer(self) -> torch.Tensor:
        """Return the flat gradients."""
        return self.gradients

    def parameters(self) -> list[torch.Tensor]:
        """Return whose gradients they are, in this order."""
        return self.of_parameters

    def is_last(self) -> bool:
        """Return whether this is the last bucket of its step."""
        return self.ends_step


class SimulatedRank:
    """One of the virtual ranks of a process; :class:`HookState` takes it for a process group."""

    def __init__(self, group: _C.SimulatedGroup, rank: int, world_size: int) -> None:
        self._group = group
        self._rank = rank
        self._world_size = world_size

    def rank(self) -> int:
        """Return which of the ranks it is."""
        return self._rank

    def size(self) -> int:
        """Return how many ranks there are."""
        return self._world_size

    def connect(self) -> SimulatedConnection:
        """Return what exchanges this rank's tensors."""
        return SimulatedConnection(self._group, self._rank, self._world_size)


class SimulatedConnection:
    """What :class:`ConnectedGroup` is for a real rank.

    All ranks are of one process and have the same settings: they need not compare them.
    """

    def __init__(self, group: _C.SimulatedGroup, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._communicator = _C.SimulatedCommunicator(group, rank)

    def connect(self, device: torch.device) -> None:
        """Do nothing: it is connected."""

    def check_agreement(self, settings: dict[str, str]) -> None:
        """Do nothing: the ranks agree."""

    def algorithm(self, algorithm: str, runs: Runs, device: torch.device) -> str:
        """Resolve ``auto`` for a bucket; see :func:`choose_algorithm`."""
        return choose_algorithm(algorithm, runs, self.world_size)

    def threads(self, num_threads: int | None, device: torch.device) -> None:
        """Return None: each rank has a thread, which is enough."""

    def all_reduce(
        self,
        bucket: torch.Tensor,
        residual: torch.Tensor | None,
        plan: _C.BucketPlan,
        factor: float,
        step: int,
        bucket_index: int = 0,
        velocity: torch.Tensor | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> torch.futures.Future[torch.Tensor]:
        """Submit this rank's part of an exchange, which runs with the last rank's."""
        return self._communicator.all_reduce(
            bucket,
            residual,
            plan,
            factor,
            step & 0xFFFFFFFF,
            bucket_index & 0xFFFF,
            velocity,
            momentum,
            nesterov,
        )

    def measurements(self) -> dict[str, float]:
        """Return the native layer's totals: ``wire_bytes`` and ``seconds_…``."""
        return self._communicator.measurements()

    def start_trace(self) -> None:
        """Do nothing: times of a simulation say nothing."""

    def stop_trace(self) -> list[tuple[int, int, int, str, float, float, int]]:
        """Return that nothing was recorded."""
        return []
