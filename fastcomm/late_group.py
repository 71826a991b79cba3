"""The process group of a hook's state, which programs may make before their process group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from fastcomm._arguments import require_process_group
from fastcomm.errors import ArgumentError
from fastcomm.job_groups import GroupPlace, place_in_job
from fastcomm.simulated_rank import SimulatedRank
from fastcomm.wrapped_models import ddp_in


class LateGroup:
    """The ranks that synchronize, looked up when they are needed.

    Args:
        given: the ranks; None: those of the DDP model, or else the default group, once there is
            one.

    Raises:
        ArgumentError: if this rank is not in the given group.
    """

    def __init__(self, given: dist.ProcessGroup | SimulatedRank | None) -> None:
        if given is not None and not isinstance(given, SimulatedRank):
            given = require_process_group(given)
        self._group = given
        self._place: GroupPlace | None = None

    @property
    def is_simulated(self) -> bool:
        """Whether the ranks are virtual ones."""
        return isinstance(self._group, SimulatedRank)

    def __str__(self) -> str:
        if self._group is None:
            return "no process group yet"
        return f"rank {self._group.rank()} of {self._group.size()}"

    def __call__(self) -> dist.ProcessGroup | SimulatedRank:
        """Return the group.

        Raises:
            Error: if the default group is to be used and there is none yet.
        """
        if self._group is None:
            self._group = require_process_group(None)
        if self._place is None:  # which is not known any more when process groups are destroyed
            self._place = place_in_job(self._group)
        return self._group

    def rank(self) -> int:
        """Return which of the ranks this is."""
        return self().rank()

    def size(self) -> int:
        """Return how many ranks there are."""
        return self().size()

    def saved(self) -> dict[str, Any]:
        """Return whose a saved state is."""
        group = self()
        assert self._place is not None
        return {"rank": group.rank(), "world_size": group.size(), "shard": self._place.shard}

    def serve(self, model: nn.Module) -> None:
        """Take the group of the DDP model that ``model`` holds, or check that it is the one in use.

        Raises:
            ArgumentError: if it is another one.
        """
        ddp_model = ddp_in(model)
        if ddp_model is None:
            return
        if self._group is None:
            self._group = ddp_model.process_group
        if self._group != ddp_model.process_group:
            raise ArgumentError(
                "process_group is not the one of the DDP model, so that its replicas would "
                "diverge; leave it out, or give it to DistributedDataParallel"
            )
