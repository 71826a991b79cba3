"""Residuals in ``torch.distributed.checkpoint`` (DCP).

DCP takes tensors with the same key for copies of each other, and saves one. Residuals are another
on each rank, so that they are saved under keys with the rank in them: ``rank1.…`` of a process
group of all ranks, ``shard2.rank1.…`` of one of several in the job, which has the rank 2 of the job
as its lowest (job_groups.py). No two ranks have the same keys, unless two models are saved under
one::

    dcp.save({"model": ..., "fastcomm": fastcomm.sharded_state_dict(state)}, checkpoint_id=path)

``dcp.load`` must be told the keys, which depend on how many ranks have saved. So there is a call
that looks at the checkpoint, and loads what this rank needs of it::

    dcp.load({"model": ...}, checkpoint_id=path)
    fastcomm.load_sharded_state_dict(state, checkpoint_id=path)
"""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from fastcomm.errors import ArgumentError
from fastcomm.hook import HookState
from fastcomm.job_groups import place_in_job
from fastcomm.saved_states import ranks_to_take

# The entries of a state that hold a tensor for each parameter.
_BY_PARAMETER = ("residuals", "velocities")


def sharded_state_dict(state: HookState) -> dict[str, Any]:
    """Return this rank's state for ``torch.distributed.checkpoint.save`` or ``async_save``.

    Put it into what is saved, on every rank, under a key of its own; with several DDP models in a
    job, each of them under another one. It is a copy.

    Raises:
        ArgumentError: if the parameters have no names yet; see :meth:`HookState.attach`.
    """
    saved = state.state_dict()
    of_rank = {f"rank{saved['rank']}": saved}
    return of_rank if saved["shard"] is None else {f"shard{saved['shard']}": of_rank}


def load_sharded_state_dict(
    state: HookState,
    *,
    checkpoint_id: str | os.PathLike[str] | None = None,
    storage_reader: Any = None,
    key: str = "fastcomm",
) -> None:
    """Restore what :func:`sharded_state_dict` returned, from a checkpoint of any number of ranks.

    Collective over the ranks of ``state``. As :meth:`HookState.load_state_dict` does with the list
    of all states, rank r takes those of the ranks r, r + N, r + 2 N, …, and reads no others.

    Args:
        state: what is to go on with the residuals.
        checkpoint_id: the folder that was given to ``torch.distributed.checkpoint.save``.
        storage_reader: where to read from, a ``torch.distributed.checkpoint.StorageReader``; None:
            from the folder ``checkpoint_id``.
        key: under which the state was saved; joined by dots if it is in dicts of dicts. With the
            name of a shard behind it, ``fastcomm.shard2``, only that is looked at.

    Raises:
        ArgumentError: if neither folder nor reader is given, if the checkpoint has no state of
            each rank under ``key``, if it has those of other shards than this job, or for what
            :meth:`HookState.load_state_dict` refuses.
    """
    # Not at import: it takes a while, and few need it.
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    if storage_reader is None:
        if checkpoint_id is None:
            raise ArgumentError("checkpoint_id and storage_reader are None; pass one of them")
        storage_reader = FileSystemReader(checkpoint_id)
    elif checkpoint_id is not None:
        storage_reader.reset(checkpoint_id)
    by_shard = _templates(storage_reader.read_metadata().state_dict_metadata, key)
    group = state.process_group
    shard = place_in_job(group).choose(by_shard)
    saved = by_shard[shard]
    taken = ranks_to_take(len(saved), group.rank(), group.size())
    # Of the first rank all but what is its own: what the ranks have in common, if nothing is taken.
    wanted = {rank: saved[rank] for rank in taken}
    if 0 not in wanted:
        shared = {name: item for name, item in saved[0].items() if name != "checksum"}
        wanted[0] = shared | {kind: {} for kind in _BY_PARAMETER}
    nested: dict[str, Any] = {f"rank{rank}": template for rank, template in wanted.items()}
    for part in reversed([*key.split("."), *([] if shard is None else [f"shard{shard}"])]):
        nested = {part: nested}
    load(nested, storage_reader=storage_reader, process_group=group)
    state.load_state_dict([wanted.get(rank, {}) for rank in range(len(saved))])


def _templates(metadata: dict[str, Any], key: str) -> dict[int | None, list[dict[str, Any]]]:
    """Return what DCP is to load the states into, of the ranks of each shard in a checkpoint."""
    of_shards: dict[int | None, dict[int, dict[str, Any]]] = {}
    pattern = re.compile(rf"{re.escape(key)}\.(?:shard(\d+)\.)?rank(\d+)\.(.*)")
    for name, item in metadata.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        shard, rank, entry = match.groups()
        of_ranks = of_shards.setdefault(None if shard is None else int(shard), {})
        template = of_ranks.setdefault(int(rank), {kind: {} for kind in _BY_PARAMETER})
        kind, _, parameter = entry.partition(".")
        if kind in _BY_PARAMETER:
            template[kind][parameter] = torch.empty(item.size, dtype=item.properties.dtype)
        else:
            template[entry] = None
    for of_ranks in of_shards.values() or [{}]:
        if sorted(of_ranks) != list(range(len(of_ranks))) or not of_ranks:
            raise ArgumentError(
                f"the checkpoint has states of the ranks {sorted(of_ranks)} under the key {key!r}; "
                f"save {{{key!r}: fastcomm.sharded_state_dict(state)}} on every rank, or pass key="
            )
    return {
        shard: [of_ranks[rank] for rank in range(len(of_ranks))]
        for shard, of_ranks in of_shards.items()
    }
