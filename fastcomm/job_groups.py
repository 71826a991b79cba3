"""Where a process group is in the job, which may have several that synchronize.

With tensor or pipeline parallelism each rank holds a *shard* of the model, and the ranks that hold
the same one average its gradients in a process group of their own. Two such groups have the same
ranks 0, 1, … each, so that a rank of the group says nothing about the shard. What does is the
lowest rank in the job that the group has: of groups without a common rank, no two have the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from fastcomm.errors import ArgumentError
from fastcomm.simulated_rank import SimulatedRank


@dataclass(frozen=True)
class GroupPlace:
    """Where a process group is in the job.

    Attributes:
        shard: the lowest rank in the job; None: the group has all ranks of the job.
        index: which of the job's groups it is, by their lowest ranks; None: not known, as the group
            is not one dimension of a mesh of all ranks.
        num_groups: how many such groups the job has; None: not known.
    """

    shard: int | None = None
    index: int | None = 0
    num_groups: int | None = 1

    def choose(self, saved: Collection[int | None]) -> int | None:
        """Return which of the shards that a checkpoint has is that of this group.

        Ranks that synchronize may have become more or fewer since, and with them the lowest rank of
        a group another one. What stays is the order of the groups.

        Raises:
            ArgumentError: if it is none, or not known.
        """
        if set(saved) == {None}:
            return None
        if None not in saved:
            in_order = sorted(shard for shard in saved if shard is not None)
            if self.index is not None and len(in_order) == self.num_groups:
                return in_order[self.index]
            if self.shard in in_order and (self.index is None or len(in_order) == 1):
                return self.shard
        names = ", ".join("all ranks" if shard is None else str(shard) for shard in saved)
        here = self.num_groups if self.num_groups is not None else "other"
        raise ArgumentError(
            f"the checkpoint has states of {len(saved)} process groups (of the shards {names}), "
            f"this job has {here}; shard the model over as many ranks as it was saved with, or "
            'name the shard that this group is to have: key="fastcomm.shard0", say'
        )


def place_of(ranks: Sequence[int], num_ranks: int) -> GroupPlace:
    """Return the place of a group of ``ranks`` in a job of ``num_ranks``."""
    if len(ranks) == num_ranks:
        return GroupPlace()
    in_order = sorted(ranks)
    lowest, size = in_order[0], len(in_order)
    # A dimension of a mesh whose last ones have `stride` ranks together. For one rank, any does.
    stride = in_order[1] - lowest if size > 1 else 1
    is_dimension = (
        in_order == list(range(lowest, lowest + size * stride, stride))
        and num_ranks % (size * stride) == 0
        and lowest % (size * stride) < stride
    )
    if not is_dimension:
        return GroupPlace(lowest, None, None)
    index = lowest // (size * stride) * stride + lowest % stride
    return GroupPlace(lowest, index, num_ranks // size)


def place_in_job(group: dist.ProcessGroup | SimulatedRank) -> GroupPlace:
    """Return the place of a process group in the running job."""
    ranks = _ranks_in_job(group)
    return GroupPlace() if ranks is None else place_of(ranks, dist.get_world_size())


def rank_in_job(group: dist.ProcessGroup | SimulatedRank) -> int:
    """Return which rank of the job this rank of a process group is."""
    ranks = _ranks_in_job(group)
    return group.rank() if ranks is None else ranks[group.rank()]


def _ranks_in_job(group: dist.ProcessGroup | SimulatedRank) -> list[int] | None:
    if isinstance(group, SimulatedRank):
        return None
    try:
        return list(dist.get_process_group_ranks(group))
    except (KeyError, ValueError):  # torch.distributed did not make it: it is a job of its own
        return None
