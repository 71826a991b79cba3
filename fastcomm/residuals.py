"""The residuals of a model's parameters, and their place in DDP's buckets.

A residual belongs to a parameter. DDP rebuilds its buckets after the first step, in another
order, so that residuals are stored bucket by bucket (the native layer wants one contiguous array
for a bucket) but found by parameter: when a bucket with new contents appears, the residuals of its
parameters move into a new array.

A rank that ran out of data (DDP's ``join()``) takes part with gradients of zero. Its residuals
belong to its own training: they stay as they are, and what its encodings of the others' sums leave
out goes to a second array, until its next own step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.parallel import DistributedDataParallel

from fastcomm import _C
from fastcomm.algorithms import codecs_and_runs
from fastcomm.codecs import Codec
from fastcomm.errors import ArgumentError
from fastcomm.group import ConnectedGroup

_MOVED_ELEMENTS = 1 << 20


@dataclass
class BucketLayout:
    """The parameters of one bucket, in its order."""

    parameters: list[torch.Tensor]  # kept alive: layouts are found by the ids of parameters
    runs: list[tuple[int, bool]]  # (num_elements, compressed), covering the bucket
    residual: torch.Tensor | None  # float32, one per element of the bucket
    joined_residual: torch.Tensor | None = None  # what was left out since this rank joined
    is_agreed: bool = False  # whether all ranks were seen to have the same layout
    plans: dict[tuple[Codec, str], _C.BucketPlan] = field(default_factory=dict)

    def describe(self) -> str:
        """Return what all ranks must have in common, for the handshake."""
        runs = ", ".join(
            f"{n}{'' if is_compressed else ' plain'}" for n, is_compressed in self.runs
        )
        return f"{len(self.parameters)} parameters of {self.parameters[0].dtype}, elements {runs}"

    def residual_to_send(self, is_joined: bool) -> torch.Tensor | None:
        """Return what an exchange adds to the gradients and leaves the rest in.

        ``is_joined``: this rank has no data any more, and takes part for the others only.
        """
        if not is_joined or self.residual is None:
            self.end_join()
            return self.residual
        if self.joined_residual is None:
            self.joined_residual = _zeros(self.residual.numel(), self.residual.device)
        return self.joined_residual

    def end_join(self) -> None:
        """Add what was left out since this rank joined to its residual."""
        if self.joined_residual is not None:
            assert self.residual is not None
            self.residual += self.joined_residual
            self.joined_residual = None

    def plan(
        self, codec: Codec, algorithm: str, group: ConnectedGroup, num_threads: int | None
    ) -> _C.BucketPlan:
        """Return the plan to synchronize this bucket with ``codec`` and ``algorithm``."""
        key = (codec, algorithm)
        if key not in self.plans:
            self.plans.clear()  # a warm-up uses another codec at each step
            device = self.parameters[0].device
            resolved = group.algorithm(algorithm, codec, self.runs, device)
            threads = group.threads(num_threads, device)
            self.plans[key] = _C.BucketPlan(*codecs_and_runs(codec, self.runs), resolved, threads)
        return self.plans[key]


class ResidualStore:
    """Residuals by parameter, laid out bucket by bucket."""

    def __init__(
        self,
        is_compressed: Callable[[torch.Tensor], bool],
        error_feedback: bool,
        starts_empty: bool,
    ) -> None:
        self._is_compressed = is_compressed
        self._error_feedback = error_feedback
        self._keeps_residuals = error_feedback and not starts_empty
        self._layouts: dict[tuple[int, ...], BucketLayout] = {}
        self._views: dict[int, torch.Tensor] = {}  # residual of a parameter, by its id
        self._names: dict[int, str] = {}
        self._num_elements: dict[str, int] = {}  # of a parameter, by its name
        self._loaded: dict[str, torch.Tensor] = {}  # from a checkpoint, not yet in a bucket

    def layout(self, parameters: list[torch.Tensor]) -> BucketLayout:
        """Return the layout of a bucket that holds ``parameters``, making it if it is new."""
        key = tuple(map(id, parameters))
        if key not in self._layouts:
            self._layouts[key] = self._make_layout(parameters)
        return self._layouts[key]

    def _make_layout(self, parameters: list[torch.Tensor]) -> BucketLayout:
        ids = set(map(id, parameters))
        replaced = [key for key in self._layouts if not ids.isdisjoint(key)]
        for key in replaced:
            self._layouts[key].end_join()
        runs: list[tuple[int, bool]] = []
        for parameter in parameters:
            compressed = self._is_compressed(parameter)
            if runs and runs[-1][1] == compressed:
                runs[-1] = (runs[-1][0] + parameter.numel(), compressed)
            else:
                runs.append((parameter.numel(), compressed))
        residual = None
        if self._keeps_residuals:
            residual = _zeros(sum(p.numel() for p in parameters), parameters[0].device)
            for parameter, view in zip(
                parameters, torch.split(residual, [p.numel() for p in parameters]), strict=True
            ):
                previous = self._views.get(id(parameter))
                if previous is not None:
                    _move(previous, view)
                else:
                    loaded = self._loaded.pop(self._names.get(id(parameter), ""), None)
                    if loaded is not None:
                        view.copy_(loaded.reshape(-1))
                self._views[id(parameter)] = view
        for key in replaced:
            del self._layouts[key]  # buckets were rebuilt
        return BucketLayout(list(parameters), runs, residual)

    def attach(self, module: torch.nn.Module) -> None:
        """Learn the names of a model's parameters (without DDP's ``module.`` prefix)."""
        if isinstance(module, DistributedDataParallel):
            module = module.module
        for name, parameter in module.named_parameters():
            self._names[id(parameter)] = name
            self._num_elements[name] = parameter.numel()

    def residual_of(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """Return the residual of a parameter, of shape (num_elements,), if it has one."""
        return self._views.get(id(parameter))

    def names(self, parameters: list[torch.Tensor]) -> list[str]:
        """Return the names of parameters.

        Raises:
            ArgumentError: if they have none yet.
        """
        self._require_names()
        return [self._names[id(parameter)] for parameter in parameters]

    def own_name(self, name: str) -> str:
        """Return what this model calls the parameter that a wrapper of it calls ``name``."""
        candidates = (name, name.removeprefix("module."), f"module.{name}")
        return next((known for known in candidates if known in self._num_elements), name)

    def named_residuals(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (parameter name, residual of shape (num_elements,)) of every parameter seen."""
        if self._views:
            self._require_names()
        self._end_join()
        for identity, view in self._views.items():
            yield self._names[identity], view
        yield from self._loaded.items()

    def load(self, residuals: dict[str, torch.Tensor]) -> None:
        """Replace every residual; parameters that are not mentioned start from zero.

        Raises:
            ArgumentError: if a residual is not of its parameter's size, if the parameters have no
                names, or if there is no error feedback to deliver the residuals.
        """
        self._require_names()
        loaded = {self.own_name(name): r for name, r in residuals.items()}
        for name, residual in loaded.items():
            expected = self._num_elements.get(name)
            if residual.numel() != expected:
                raise ArgumentError(
                    f"the residual of {name!r} has {residual.numel()} elements, its parameter has "
                    f"{expected if expected is not None else 'no counterpart in this model'}; "
                    "load a checkpoint of the same model"
                )
        if loaded and not self._error_feedback:
            raise ArgumentError(
                "the state has residuals, which error_feedback=False would never deliver; use "
                "error_feedback=True, or call flush() and make one step before saving"
            )
        self._keeps_residuals |= bool(loaded)
        # The next step lays its buckets out anew and takes the residuals from here.
        self._layouts.clear()
        self._views.clear()
        self._loaded = {name: r.float().clone() for name, r in loaded.items()}

    def rescale(self, factor: float) -> None:
        """Multiply every residual; one that would overflow becomes the largest float32."""
        self._end_join()
        largest = torch.finfo(torch.float32).max
        of_buckets = [layout.residual for layout in self._layouts.values()]
        for residual in [*of_buckets, *self._loaded.values()]:
            if residual is not None:
                residual.mul_(factor).clamp_(-largest, largest)

    def _end_join(self) -> None:
        for layout in self._layouts.values():
            layout.end_join()

    def _require_names(self) -> None:
        if not self._names:
            raise ArgumentError(
                "the parameters have no names yet; use fastcomm.register(ddp_model), or call "
                "state.attach(ddp_model) once"
            )


def _zeros(num_elements: int, device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return _C.streamed_zeros(num_elements)
    return torch.zeros(num_elements, dtype=torch.float32, device=device)


def _move(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a part of an old bucket, whose other parts are still in use, and give its memory back.

    Bit by bit: there are never two residuals of all parameters, nor of a large one. Memory of a
    GPU comes back only when nothing of the old bucket is in use any more.
    """
    if source.device.type != "cpu" or target.device.type != "cpu":
        target.copy_(source)
        return
    for begin in range(0, source.numel(), _MOVED_ELEMENTS):
        part = source[begin : begin + _MOVED_ELEMENTS]
        target[begin : begin + _MOVED_ELEMENTS].copy_(part)
        _C.release_streamed(part)
