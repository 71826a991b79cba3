"""Training with many ranks in one process: what a codec does to accuracy, without a cluster.

A simulation has one replica of the model, which computes the gradients of one *virtual rank* after
the other. They are synchronized by the same hook states, C++ schedules and codecs as those of real
ranks, over a transport that copies memory: results and wire bytes are those of real ranks, with
the buckets that DDP has after its first step. Time is not.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from fastcomm import _C
from fastcomm.bucket_views import as_real, num_elements, shaped_as, split_by_parameter
from fastcomm.codecs import Codec
from fastcomm.errors import ArgumentError
from fastcomm.hook import HookState
from fastcomm.simulated_rank import SimulatedBucket, SimulatedRank
from fastcomm.stats import Stats

_FIRST_BUCKET_BYTES = 1 << 20  # DDP's own


class Simulation:
    """The gradient synchronization of ``world_size`` virtual ranks that share one model.

    For each step::

        for rank in range(world_size):
            loss(model(inputs[rank])).backward()
            simulation.collect(rank)
        simulation.synchronize()
        optimizer.step()
        optimizer.zero_grad()

    Args:
        module: the model, with its parameters on the CPU. What else it holds (running means of
            batch norms) is updated by all virtual ranks, one after the other.
        world_size: how many virtual ranks there are.
        codec: a codec or its name; see :func:`fastcomm.codec`.
        bucket_cap_mb: as of DistributedDataParallel.
        **options: further arguments of :class:`HookState`.

    Raises:
        ArgumentError: for an argument that cannot work.
    """

    def __init__(
        self,
        module: nn.Module,
        world_size: int,
        codec: str | Codec = "int8",
        bucket_cap_mb: float = 25.0,
        **options: Any,
    ) -> None:
        if world_size < 1:
            raise ArgumentError(f"world_size {world_size} is less than 1")
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        if not self._parameters:
            raise ArgumentError("the module has no parameters that require gradients")
        devices = {str(parameter.device) for parameter in self._parameters} - {"cpu"}
        if devices:
            raise ArgumentError(
                f"the module is on {min(devices)}; ranks are simulated on the CPU: module.cpu()"
            )
        group = _C.SimulatedGroup(world_size)
        self.states: list[HookState] = []
        for rank in range(world_size):
            state = HookState(
                codec, process_group=SimulatedRank(group, rank, world_size), **options
            )
            state.attach(module)
            state.connect()
            self.states.append(state)
        self._buckets = _buckets(self._parameters, bucket_cap_mb)
        self._gradients: list[list[torch.Tensor] | None] = [None] * world_size

    @property
    def stats(self) -> Stats:
        """What a rank sent so far, in the mean of all ranks; the times are of no meaning."""
        of_ranks = [state.stats for state in self.states]
        return replace(
            of_ranks[0],
            wire_bytes=round(statistics.fmean(each.wire_bytes for each in of_ranks)),
            last_step_wire_bytes=round(
                statistics.fmean(each.last_step_wire_bytes for each in of_ranks)
            ),
        )

    def follow_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Call :meth:`HookState.follow_learning_rate` on all ranks."""
        for state in self.states:
            state.follow_learning_rate(optimizer)

    def flush(self) -> None:
        """Call :meth:`HookState.flush` on all ranks."""
        for state in self.states:
            state.flush()

    def state_dicts(self) -> list[dict[str, Any]]:
        """Return the states of all ranks, as :meth:`HookState.load_state_dict` takes them."""
        return [state.state_dict() for state in self.states]

    def load_state_dicts(self, state_dicts: list[dict[str, Any]]) -> None:
        """Restore what any number of ranks saved, real or simulated."""
        for state in self.states:
            is_own = len(state_dicts) == len(self.states)
            state.load_state_dict(
                state_dicts[state.process_group.rank()] if is_own else state_dicts
            )

    def collect(self, rank: int) -> None:
        """Take the parameters' gradients as those of a virtual rank, and set them to None.

        A parameter without a gradient has one of zeros. Several backward passes before it add up.

        Raises:
            ArgumentError: if there is no such rank, or it was collected in this step already.
        """
        if not 0 <= rank < len(self.states):
            raise ArgumentError(f"there is no rank {rank} of {len(self.states)}")
        if self._gradients[rank] is not None:
            raise ArgumentError(
                f"the gradients of rank {rank} were collected already; call synchronize() when all "
                "ranks are"
            )
        self._gradients[rank] = [_flat_gradients(bucket) for bucket in self._buckets]
        for parameter in self._parameters:
            parameter.grad = None

    def synchronize(self) -> None:
        """Set the parameters' gradients to the average of what was collected from all ranks.

        Raises:
            ArgumentError: if nothing was collected from a rank since the step before.
            Error: if the exchange fails.
        """
        missing = [rank for rank, collected in enumerate(self._gradients) if collected is None]
        if missing:
            raise ArgumentError(
                f"no gradients of rank {missing[0]} in this step; call collect({missing[0]}) after "
                "its backward pass"
            )
        futures = []
        for state, collected in zip(self.states, self._gradients, strict=True):
            assert collected is not None
            for index, (parameters, buffer) in enumerate(
                zip(self._buckets, collected, strict=True)
            ):
                is_last = index == len(self._buckets) - 1
                bucket = SimulatedBucket(buffer, parameters, is_last)
                futures.append(state.synchronize(bucket))
        for future in futures:
            future.wait()
        results = self._gradients[0]
        assert results is not None
        for parameters, result in zip(self._buckets, results, strict=True):
            parts = split_by_parameter(result, parameters)
            for parameter, part in zip(parameters, parts, strict=True):
                gradient = shaped_as(parameter, part)
                is_complex = parameter.is_complex()
                parameter.grad = torch.view_as_complex(gradient) if is_complex else gradient
        self._gradients = [None] * len(self.states)


def _flat_gradients(parameters: list[torch.Tensor]) -> torch.Tensor:
    """Return a bucket with the parameters' gradients, as DDP lays them out."""
    dtype = parameters[0].real.dtype
    buffer = torch.zeros(sum(map(num_elements, parameters)), dtype=dtype, device="cpu")
    for parameter, part in zip(parameters, split_by_parameter(buffer, parameters), strict=True):
        if parameter.grad is not None:
            shaped_as(parameter, part).copy_(as_real(parameter.grad))
    return buffer


def _buckets(parameters: list[nn.Parameter], bucket_cap_mb: float) -> list[list[torch.Tensor]]:
    """Return the parameters of each bucket, as DDP has them after its first step.

    Without the order in which gradients become ready, which is taken to be the reverse one.
    """
    backwards: list[torch.Tensor] = list(reversed(parameters))
    limits = [_FIRST_BUCKET_BYTES, int(bucket_cap_mb * 1024 * 1024)]
    indices, _ = dist._compute_bucket_assignment_by_size(  # type: ignore[attr-defined]
        backwards, limits
    )
    return [[backwards[index] for index in bucket] for bucket in indices]
