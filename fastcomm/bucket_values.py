"""float32 values for every element of a model's gradients: residuals, velocities.

They belong to parameters. DDP rebuilds its buckets after the first step, in another order, so that
values are stored bucket by bucket (the native layer wants one contiguous array for a bucket) but
found by parameter: when a bucket with new contents appears, the values of its parameters move into
a new array.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from fastcomm import _C
from fastcomm.bucket_views import num_elements, real_shape, shaped_as, split_by_parameter

_MOVED_ELEMENTS = 1 << 20


class BucketValues:
    """Values by parameter, laid out bucket by bucket; zero where nothing else is known."""

    def __init__(self) -> None:
        self._views: dict[int, torch.Tensor] = {}  # those of a parameter, flat, by its id
        self._parameters: dict[int, torch.Tensor] = {}  # of which there are views
        self._loaded: dict[str, torch.Tensor] = {}  # from a checkpoint, not yet in a bucket

    def lay_out(self, parameters: list[torch.Tensor], names: Mapping[int, str]) -> torch.Tensor:
        """Return an array for a bucket of ``parameters``, with the values that they have.

        ``names``: of parameters, by their ids, as far as they are known.
        """
        values = zeros(sum(map(num_elements, parameters)), parameters[0].device)
        views = split_by_parameter(values, parameters)
        for parameter, view in zip(parameters, views, strict=True):
            previous = self._views.get(id(parameter))
            if previous is not None:
                _move(previous, view)
            else:
                loaded = self._loaded.pop(names.get(id(parameter), ""), None)
                if loaded is not None and loaded.shape == real_shape(parameter):
                    shaped_as(parameter, view).copy_(loaded)
                elif loaded is not None:  # a state of before 0.2: flat, in the order of memory
                    view.copy_(loaded.reshape(-1))
            self._views[id(parameter)] = view
            self._parameters[id(parameter)] = parameter
        return values

    def of(self, parameter: torch.Tensor, names: Mapping[int, str]) -> torch.Tensor | None:
        """Return the values of a parameter, in its shape, if it has some."""
        view = self._views.get(id(parameter))
        if view is not None:
            return shaped_as(parameter, view)
        return self._loaded.get(names.get(id(parameter), ""))

    def named(self, names: Mapping[int, str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (parameter name, values in its shape) of every parameter seen."""
        for identity, view in self._views.items():
            yield names[identity], shaped_as(self._parameters[identity], view)
        yield from self._loaded.items()

    def has_only(self, names: Mapping[int, str]) -> bool:
        """Return whether every parameter that was seen has a name."""
        return self._views.keys() <= names.keys()

    def load(self, values: dict[str, torch.Tensor]) -> None:
        """Replace all values, by parameter name, for buckets that are laid out from now on."""
        self._views.clear()
        self._parameters.clear()
        self._loaded = {name: of_one.float().clone() for name, of_one in values.items()}

    def rescale(self, factor: float) -> None:
        """Multiply all values; one that would overflow becomes the largest float32."""
        for values in [*self._views.values(), *self._loaded.values()]:
            rescale(values, factor)


def rescale(values: torch.Tensor, factor: float) -> None:
    """Multiply values in place; one that would overflow becomes the largest float32."""
    largest = torch.finfo(torch.float32).max
    values.mul_(factor).clamp_(-largest, largest)


def zeros(num_elements: int, device: torch.device) -> torch.Tensor:
    """Return zeros, in memory that is good to stream through."""
    if device.type == "cpu":
        return _C.streamed_zeros(num_elements)
    return torch.zeros(num_elements, dtype=torch.float32, device=device)


def _move(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a part of an old bucket, whose other parts are still in use, and give its memory back.

    Bit by bit: there are never two values of all parameters, nor of a large one. Memory of a GPU
    comes back only when nothing of the old bucket is in use any more.
    """
    if source.device.type != "cpu" or target.device.type != "cpu":
        target.copy_(source)
        return
    for begin in range(0, source.numel(), _MOVED_ELEMENTS):
        part = source[begin : begin + _MOVED_ELEMENTS]
        target[begin : begin + _MOVED_ELEMENTS].copy_(part)
        _C.release_streamed(part)
