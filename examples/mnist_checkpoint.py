"""Checkpoints of a training run, from which it goes on after a failure, with as many ranks or not.

A checkpoint is a folder that is named after its step:

    step-00000200/shared.pt    what is the same on every rank: the model, the optimizer, ...
    step-00000200/rank-0.pt    what each rank has for itself: its residuals, its random state
    step-00000200/rank-1.pt

The ranks write into a folder with another name, which rank 0 renames once all of them have done so.
Thus a rank that is killed in the middle of it leaves the checkpoint before as the latest one.
Beside each file is its CRC-32: where a disk has lost or changed something, the checkpoint before
is taken.
"""

import io
import os
import shutil
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

State = dict[str, Any]

_NUM_KEPT = 2
_PARTIAL = ".partial"
_CHECKSUM = ".crc32"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved, as far as this rank needs it."""

    shared: State
    own: State | None  # None: another number of ranks saved it
    of_ranks: list[State]  # only this rank's own, where there is one, else those of all ranks


class CheckpointFolder:
    """The checkpoints of one run, in a folder that all ranks see. Its methods are collective.

    Args:
        folder: made if it does not exist.
        settings: what the run has in common with those it goes on from; flat.
    """

    def __init__(self, folder: Path, settings: State) -> None:
        self._folder = folder
        self._settings = settings

    def save(self, step: int, shared: State, own: State) -> None:
        """Save the state after ``step``: ``shared`` of rank 0, and each rank's ``own``."""
        rank = dist.get_rank()
        complete = self._folder / f"step-{step:08}"
        partial = complete.with_suffix(_PARTIAL)
        partial.mkdir(parents=True, exist_ok=True)
        _save(own, partial / f"rank-{rank}.pt")
        if rank == 0:
            run = {"settings": self._settings, "world_size": dist.get_world_size()}
            _save(run | shared, partial / "shared.pt")
        dist.barrier()
        if rank == 0:
            _sync(partial)
            os.replace(partial, complete)
            _sync(self._folder)
            for old in self._complete()[:-_NUM_KEPT]:
                # What is deleted in part must not count as complete either.
                shutil.rmtree(old.rename(old.with_suffix(_PARTIAL)))

    def load_latest(self, device: torch.device) -> Checkpoint | None:
        """Return the latest complete checkpoint, the same on every rank; None if there is none.

        Args:
            device: where tensors may be that the ranks exchange.

        Raises:
            ValueError: if it was saved by a run with other settings, or if all are damaged.
        """
        names: list[Any] = [[]]
        if dist.get_rank() == 0:
            for partial in self._folder.glob(f"step-*{_PARTIAL}"):
                shutil.rmtree(partial)
            names = [[complete.name for complete in reversed(self._complete())]]
        dist.broadcast_object_list(names, 0, device=device)
        for name in names[0]:
            found, damage = None, ""
            try:
                found = self._load(self._folder / name)
            except DamagedError as error:
                damage = str(error)
            is_whole = torch.tensor(int(found is not None), device=device)
            dist.all_reduce(is_whole, dist.ReduceOp.MIN)
            if is_whole:
                return found
            warnings.warn(
                f"the checkpoint {name} is damaged ({damage or 'on another rank'}); trying the one "
                "before",
                stacklevel=2,
            )
        if names[0]:
            raise ValueError(f"all checkpoints in {self._folder} are damaged; use another folder")
        return None

    def _load(self, folder: Path) -> Checkpoint:
        shared = _load(folder / "shared.pt")
        for name, value in self._settings.items():
            if shared["settings"][name] != value:
                raise ValueError(
                    f"{folder} is of a run with {name} {shared['settings'][name]}, this one has "
                    f"{value}; use the same, or another folder"
                )
        if shared["world_size"] == dist.get_world_size():
            own = _load(folder / f"rank-{dist.get_rank()}.pt")
            return Checkpoint(shared, own, [own])
        ranks = range(shared["world_size"])
        return Checkpoint(shared, None, [_load(folder / f"rank-{rank}.pt") for rank in ranks])

    def _complete(self) -> list[Path]:
        """Return the folders of all complete checkpoints, the latest one last."""
        return sorted(self._folder.glob("step-" + 8 * "[0-9]"))


class DamagedError(Exception):
    """A file is not what was saved."""


def _save(state: State, path: Path) -> None:
    file = io.BytesIO()
    torch.save(state, file)
    _write(path, file.getbuffer())
    _write(path.with_suffix(_CHECKSUM), f"{zlib.crc32(file.getbuffer()):08x}".encode())


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a file, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load(path: Path) -> State:
    try:
        content = path.read_bytes()
        expected = path.with_suffix(_CHECKSUM).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(str(error)) from error
    if f"{zlib.crc32(content):08x}" != expected:
        raise DamagedError(f"the checksum of {path.name} is not {expected[:20]!r}")
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
