"""Residuals in ``torch.distributed.checkpoint`` (DCP).

DCP takes tensors with the same key for copies of each other, and saves one. Residuals are another
on each rank, so that they are saved under keys with the rank in them::

    dcp.save({"model": ..., "fastcomm": fastcomm.sharded_state_dict(state)}, checkpoint_id=path)

``dcp.load`` must be told the keys, which depend on how many ranks have saved. So there is a call
that looks at the checkpoint, and loads what this rank needs of it::

    dcp.load({"model": ...}, checkpoint_id=path)
    fastcomm.load_sharded_state_dict(state, checkpoint_id=path)
"""

from __future__ import annotations

import os
from typing import Any

import torch

from fastcomm.errors import ArgumentError
from fastcomm.hook import HookState
from fastcomm.saved_states import ranks_to_take

# The entries of a state that hold a tensor for each parameter.
_BY_PARAMETER = ("residuals", "velocities")


def sharded_state_dict(state: HookState) -> dict[str, Any]:
    """Return this rank's state for ``torch.distributed.checkpoint.save`` or ``async_save``.

    Put it into what is saved, on every rank, under a key of its own; with several DDP models or
    process groups in a job, each of them under another one. It is a copy.

    Raises:
        ArgumentError: if the parameters have no names yet; see :meth:`HookState.attach`.
    """
    return {f"rank{state.process_group.rank()}": state.state_dict()}


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
        key: under which the state was saved; joined by dots if it is in dicts of dicts.

    Raises:
        ArgumentError: if neither folder nor reader is given, if the checkpoint has no state of
            each rank under ``key``, or for what :meth:`HookState.load_state_dict` refuses.
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
    saved = _templates(storage_reader.read_metadata().state_dict_metadata, key)
    group = state.process_group
    taken = ranks_to_take(len(saved), group.rank(), group.size())
    # Of the first rank all but what is its own: what the ranks have in common, if nothing is taken.
    wanted = {rank: saved[rank] for rank in taken}
    if 0 not in wanted:
        shared = {name: item for name, item in saved[0].items() if name != "checksum"}
        wanted[0] = shared | {kind: {} for kind in _BY_PARAMETER}
    nested: dict[str, Any] = {f"rank{rank}": template for rank, template in wanted.items()}
    for part in reversed(key.split(".")):
        nested = {part: nested}
    load(nested, storage_reader=storage_reader, process_group=group)
    state.load_state_dict([wanted.get(rank, {}) for rank in range(len(saved))])


def _templates(metadata: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return what DCP is to load the state of each rank into, from what a checkpoint has."""
    templates: dict[int, dict[str, Any]] = {}
    for name, item in metadata.items():
        rank, _, entry = name.removeprefix(f"{key}.rank").partition(".")
        if not name.startswith(f"{key}.rank") or not rank.isdecimal():
            continue
        template = templates.setdefault(int(rank), {kind: {} for kind in _BY_PARAMETER})
        kind, _, parameter = entry.partition(".")
        if kind in _BY_PARAMETER:
            template[kind][parameter] = torch.empty(item.size, dtype=item.properties.dtype)
        else:
            template[entry] = None
    if sorted(templates) != list(range(len(templates))) or not templates:
        raise ArgumentError(
            f"the checkpoint has states of the ranks {sorted(templates)} under the key {key!r}; "
            f"save {{{key!r}: fastcomm.sharded_state_dict(state)}} on every rank, or pass key="
        )
    return [templates[rank] for rank in range(len(templates))]
