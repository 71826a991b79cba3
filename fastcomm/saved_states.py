"""Which of the states that the ranks saved a rank goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastcomm.errors import ArgumentError
from fastcomm.state_checks import check_state, check_states


def state_to_take(
    saved: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    rank: int,
    world_size: int,
    shard: int | None = None,
) -> dict[str, Any]:
    """Return the state with which one of ``world_size`` ranks goes on.

    Args:
        saved: what one rank saved, or the list of what all ranks did.
        rank: the rank that goes on.
        world_size: how many ranks go on.
        shard: what these have of the model; see job_groups.py.

    Raises:
        ArgumentError: if a single state is not that of this rank, of as many ranks, of this shard;
            if states are missing in a list, or for what :func:`check_states` refuses.
    """
    if not isinstance(saved, (list, tuple)):
        check_state(saved)
        assert isinstance(saved, Mapping)
        if saved["world_size"] != world_size:
            raise ArgumentError(
                f"the state was saved by {saved['world_size']} ranks, now there are "
                f"{world_size}; pass the list of the states of all ranks that saved one"
            )
        if saved.get("rank", rank) != rank:
            raise ArgumentError(
                f"the state was saved by rank {saved['rank']}, this is rank {rank}, whose state "
                "differs; save one for each rank (with torch.distributed.checkpoint: use "
                "fastcomm.sharded_state_dict; what Accelerate and Lightning save on rank 0 is not "
                "enough), or pass the list of the states of all ranks"
            )
        if None not in (shard, saved.get("shard")) and saved["shard"] != shard:
            raise ArgumentError(
                f"the state was saved by the process group whose lowest rank in the job is "
                f"{saved['shard']}, this is the one of rank {shard}, which has another shard of "
                "the model; give each rank what it saved itself"
            )
        return _merged([saved], saved, 1.0)
    check_states(saved)
    if all("rank" in state for state in saved):
        saved = sorted(saved, key=lambda state: int(state["rank"]))
    if saved[0]["world_size"] != len(saved):
        raise ArgumentError(
            f"{saved[0]['world_size']} ranks saved a state, here are {len(saved)}; residuals of "
            "the others would be lost: save and pass the states of all ranks"
        )
    ranks = ranks_to_take(len(saved), rank, world_size)
    return _merged([saved[rank] for rank in ranks], saved[0], world_size / len(saved))


def ranks_to_take(num_saved: int, rank: int, world_size: int) -> range:
    """Return the ranks, of those that saved, whose residuals one of ``world_size`` ranks takes."""
    return range(rank, num_saved, world_size)


def _merged(
    mine: Sequence[Mapping[str, Any]], first: Mapping[str, Any], velocity_factor: float
) -> dict[str, Any]:
    # What all ranks have in common comes from the first: there may be nothing for this rank.
    velocities = _summed([state.get("velocities", {}) for state in mine])
    return {
        "step": first["step"],
        "grad_scale": first.get("grad_scale"),  # older states lack these
        "flush_requested": first.get("flush_requested", False),
        "buckets": first.get("buckets", []),
        "guard_level": first.get("guard_level", 0),
        "guard_has_warned": first.get("guard_has_warned", False),
        "guard_squares": first.get("guard_squares"),
        "guard_sums": first.get("guard_sums"),
        "rate_groups": first.get("rate_groups", []),
        "rates": first.get("rates", []),
        "largest_rate": first.get("largest_rate", 0.0),
        "residuals": _summed([state["residuals"] for state in mine]),
        # Residuals are delivered once, and their sum counts. Velocities go on: their mean does.
        "velocities": {name: velocity_factor * its for name, its in velocities.items()},
    }


def _summed(of_states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for named in of_states:
        for name, values in named.items():
            sums[name] = sums[name] + values.to(sums[name].device) if name in sums else values
    return sums
