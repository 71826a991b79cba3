"""Parameters of which each rank holds a shard (tensor parallelism), and those that all ranks hold.

In a job of data-parallel times tensor-parallel ranks, DDP averages over the data-parallel ones. Its
buckets mix parameters that are sharded over the tensor-parallel ranks with others, say of norms,
that all of these ranks hold. The others stay equal everywhere only if their averages depend on
nothing that differs between tensor-parallel ranks. But a block's scale, what is selected, and the
order of a sum depend on all that a bucket holds. So a bucket is cut up by the ranks over which its
parameters are sharded, and each piece is synchronized as if it were a bucket.

``parallelize_module`` makes parameters DTensors, which DDP cannot take: ``DistributedDataParallel(
module, device_mesh=mesh["dp"])`` replaces them by their local shards, and leaves the DTensor's
specification at these. What is sharded without DTensor is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from fastcomm.errors import ArgumentError

Pieces = list[list[int]]  # places of parameters in their bucket
Shards = frozenset[tuple[int, ...]]  # the ranks along each dimension of the mesh that shards


class ShardedParameters:
    """What is known of how a model's parameters are sharded.

    Args:
        refusals: why options that were given cannot be used with sharded parameters; empty if all
            can.
    """

    def __init__(self, refusals: Iterable[str] = ()) -> None:
        self._refusals = list(refusals)
        # By id, of parameters that are kept alive: over which ranks they are sharded.
        self._of: dict[int, tuple[torch.Tensor, Shards]] = {}

    def attach(self, named: Mapping[str, torch.Tensor]) -> None:
        """Look at a model's parameters.

        Raises:
            ArgumentError: if they cannot be synchronized as they are sharded.
        """
        for name, parameter in named.items():
            self._sharded_over(parameter, repr(name))

    def pieces(self, parameters: list[torch.Tensor]) -> Pieces:
        """Return which parameters of a bucket may be synchronized together, in its order.

        Raises:
            ArgumentError: if they cannot be synchronized as they are sharded.
        """
        pieces: dict[Shards, list[int]] = {}
        for place, parameter in enumerate(parameters):
            what = f"of shape {tuple(parameter.shape)}"
            pieces.setdefault(self._sharded_over(parameter, what), []).append(place)
        return list(pieces.values())

    def _sharded_over(self, parameter: torch.Tensor, what: str) -> Shards:
        """Return over which ranks a parameter is sharded."""
        known = self._of.get(id(parameter))
        if known is None:
            known = self._of[id(parameter)] = parameter, self._look(parameter, what)
        return known[1]

    def _look(self, parameter: torch.Tensor, what: str) -> Shards:
        specification: Any = _specification_of(parameter)
        if specification is None:
            return frozenset()
        mesh = specification.mesh
        dimensions = [
            dimension
            for dimension, placement in enumerate(specification.placements)
            if not placement.is_replicate() and mesh.size(dimension) > 1
        ]
        if not dimensions:
            return frozenset()
        num_shards = math.prod(mesh.size(dimension) for dimension in dimensions)
        whole = specification.shape
        if parameter.numel() * num_shards != whole.numel():
            raise ArgumentError(
                f"the parameter {what} is a shard of one of shape {tuple(whole)}, whose "
                f"{num_shards} shards are not equally large: DDP's buckets would differ between "
                "the ranks that hold them, and with them the bits of parameters that are not "
                f"sharded; pad the sharded dimension to a multiple of {num_shards}"
            )
        if self._refusals:
            raise ArgumentError(
                f"the parameter {what} is sharded over {num_shards} ranks; "
                f"{'; '.join(self._refusals)}"
            )
        return frozenset(_ranks_along(mesh.mesh, dimension) for dimension in dimensions)


def check_names(
    named: Mapping[str, torch.Tensor], known: Iterable[int], of_ddp: Iterable[torch.Tensor]
) -> None:
    """Check that shards can be found by the names that a model has for its parameters.

    Args:
        named: the parameters of the model.
        known: the ids of such that have names already.
        of_ddp: the parameters that DDP synchronizes.

    Raises:
        ArgumentError: if the model is not in DDP yet, or its parameters have lost their names.
    """
    for name, parameter in named.items():
        if hasattr(parameter, "placements"):
            raise ArgumentError(
                f"the parameter {name!r} is a DTensor, which DistributedDataParallel(module, "
                'device_mesh=mesh["dp"]) replaces by its local shard; make the '
                "DistributedDataParallel model first, and attach to that"
            )
    with_names = {*known, *map(id, named.values())}
    for parameter in of_ddp:
        if id(parameter) not in with_names and _specification_of(parameter) is not None:
            raise ArgumentError(
                f"a sharded parameter of shape {tuple(parameter.shape)} has no name any more: a "
                "module with DTensors has its parameters only until its first forward pass in "
                "DistributedDataParallel; register or attach before that"
            )


def _ranks_along(mesh: torch.Tensor, dimension: int) -> tuple[int, ...]:
    """Return the ranks along a dimension of a mesh in whose midst this one is."""
    lines = mesh.movedim(dimension, -1).reshape(-1, mesh.size(dimension)).tolist()
    return next(tuple(line) for line in lines if dist.get_rank() in line)


def _specification_of(parameter: torch.Tensor) -> object | None:
    """Return the specification of the DTensor whose local shard a parameter is, if it is one."""
    return getattr(parameter, "_st_info", None)
