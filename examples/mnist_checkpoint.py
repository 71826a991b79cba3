"""Checkpoints of a training run, from which it goes on after a failure, with as many ranks or not.

A checkpoint is a folder that is named after its step:

    step-00000200/shared.pt    what is the same on every rank: the model, the optimizer, ...
    step-00000200/rank-0.pt    what each rank has for itself: its residuals, its random state
    step-00000200/rank-1.pt

The ranks write into a folder with another name, which rank 0 renames once all of them have done so.
Thus a rank that is killed in the middle of it leaves the checkpoint before as the latest one.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

State = dict[str, Any]

_NUM_KEPT = 2
_PARTIAL = ".partial"


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
        torch.save(own, partial / f"rank-{rank}.pt")
        if rank == 0:
            run = {"settings": self._settings, "world_size": dist.get_world_size()}
            torch.save(run | shared, partial / "shared.pt")
        dist.barrier()
        if rank == 0:
            os.replace(partial, complete)
            for old in self._complete()[:-_NUM_KEPT]:
                # What is deleted in part must not count as complete either.
                shutil.rmtree(old.rename(old.with_suffix(_PARTIAL)))

    def load_latest(self, device: torch.device) -> Checkpoint | None:
        """Return the latest complete checkpoint, the same on every rank; None if there is none.

        Args:
            device: where tensors may be that the ranks exchange.

        Raises:
            ValueError: if it was saved by a run with other settings.
        """
        latest = torch.tensor(-1, device=device)
        if dist.get_rank() == 0:
            for partial in self._folder.glob(f"step-*{_PARTIAL}"):
                shutil.rmtree(partial)
            for complete in self._complete()[-1:]:
                latest.fill_(int(complete.name.removeprefix("step-")))
        dist.broadcast(latest, 0)
        if latest.item() < 0:
            return None
        folder = self._folder / f"step-{int(latest.item()):08}"
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


def _load(path: Path) -> State:
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
