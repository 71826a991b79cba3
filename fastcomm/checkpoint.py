"""Which of the states that the ranks saved a rank goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastcomm.errors import ArgumentError


def state_to_take(
    saved: dict[str, Any] | Sequence[dict[str, Any]], rank: int, world_size: int
) -> dict[str, Any]:
    """Return the state with which one of ``world_size`` ranks goes on.

    Args:
        saved: what one rank saved, or the list of what all ranks did.
        rank: the rank that goes on.
        world_size: how many ranks go on.

    Raises:
        ArgumentError: if a single state is not that of this rank, of as many ranks.
    """
    if isinstance(saved, dict):
        if saved["world_size"] != world_size:
            raise ArgumentError(
                f"the state was saved by {saved['world_size']} ranks, now there are "
                f"{world_size}; pass the list of the states of all ranks that saved one"
            )
        if saved.get("rank", rank) != rank:
            raise ArgumentError(
                f"the state was saved by rank {saved['rank']}, this is rank {rank}, whose state "
                "differs; save one for each rank (with torch.distributed.checkpoint: see "
                "fastcomm.sharded_state_dict), or pass the list of the states of all ranks"
            )
        return merged([saved], saved)
    return merged(saved[rank::world_size], saved[0])


def merged(mine: Sequence[dict[str, Any]], first: dict[str, Any]) -> dict[str, Any]:
    """Return the state with the sum of the residuals of ``mine``, and what ``first`` has else.

    What ranks have in common comes from one of them, because there may be nothing for this rank.
    """
    residuals: dict[str, torch.Tensor] = {}
    for state in mine:
        for name, residual in state["residuals"].items():
            if name in residuals:
                residual = residuals[name] + residual.to(residuals[name].device)
            residuals[name] = residual
    return {
        "step": first["step"],
        "grad_scale": first.get("grad_scale"),  # older states lack these
        "flush_requested": first.get("flush_requested", False),
        "buckets": first.get("buckets", []),
        "residuals": residuals,
    }
