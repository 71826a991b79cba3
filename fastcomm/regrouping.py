"""Which parameters were in which bucket, and how to go on with that after a checkpoint.

Blocks, segments and random numbers depend on where an element is in which bucket. A new DDP model
puts everything into one bucket at first (one for each dtype) and rebuilds its buckets after its
first backward pass (with ``static_graph`` its second), as the model did that was saved. To go on
as that one, a step before the rebuild is cut up: when a bucket is a union of saved ones, their
gradients are gathered, synchronized one saved bucket after another, each under the index that it
had, and copied back. Where the buckets do not fit together, DDP's own are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastcomm import _C
from fastcomm.bucket_views import split_by_parameter
from fastcomm.errors import described

# With static_graph, DDP rebuilds its buckets after two steps.
_MOST_REGROUPED_STEPS = 2

Names = Callable[[list[torch.Tensor]], list[str]]  # of parameters


@dataclass
class Part:
    """What is synchronized at a time: all of a DDP bucket, or the part that was a bucket once."""

    index: int  # of the bucket, among those of the step
    parameters: list[torch.Tensor]


Exchange = Callable[[torch.Tensor, Part], torch.futures.Future[torch.Tensor]]
Start = Callable[[torch.Tensor, list[torch.Tensor]], torch.futures.Future[torch.Tensor]]


class BucketHistory:
    """The buckets of the last complete step, and those of a checkpoint as long as they matter."""

    def __init__(self) -> None:
        self._last: list[list[torch.Tensor]] = []
        self._current: dict[int, list[torch.Tensor]] = {}  # of this step, by index
        self._saved: list[list[str]] = []
        self._num_steps_left = 0  # in which buckets may be regrouped
        self._has_regrouped = False  # in this step

    def load(self, buckets: list[list[str]]) -> None:
        """Go on with the buckets of a checkpoint, given by the names of their parameters."""
        self._last = []
        self._saved = buckets
        self._num_steps_left = _MOST_REGROUPED_STEPS if buckets else 0

    def saved(self, names: Names) -> list[list[str]]:
        """Return the names of the parameters in each bucket of the last complete step."""
        if not self._last:
            return [list(bucket) for bucket in self._saved]
        return [names(parameters) for parameters in self._last]

    def note(self, part: Part) -> None:
        """Note that a part is synchronized in this step."""
        self._current[part.index] = part.parameters

    def end_step(self) -> None:
        """Note that the step is complete."""
        self._last = [self._current[index] for index in sorted(self._current)]
        self._current = {}
        self._num_steps_left = self._num_steps_left - 1 if self._has_regrouped else 0
        self._has_regrouped = False

    def parts(self, parameters: list[torch.Tensor], names: Names) -> list[Part]:
        """Return the parts of DDP's bucket of ``parameters``.

        The saved buckets of which it is the union; or itself, if it is no such union. Then the
        checkpoint's buckets are of no use any more.
        """
        if self._num_steps_left > 0:
            by_name = dict(zip(names(parameters), parameters, strict=True))
            parts = [
                Part(index, [by_name[name] for name in bucket])
                for index, bucket in enumerate(self._saved)
                if index not in self._current and by_name.keys() >= set(bucket)
            ]
            if sum(len(part.parameters) for part in parts) == len(parameters):
                self._has_regrouped |= not _is_whole(parts, parameters)
                return parts
            self._num_steps_left = 0
        return [Part(max(self._current, default=-1) + 1, parameters)]


def synchronize_parts(
    buffer: torch.Tensor, parameters: list[torch.Tensor], parts: list[Part], exchange: Exchange
) -> torch.futures.Future[torch.Tensor]:
    """Synchronize ``buffer``, the gradients of ``parameters``; return a future of it.

    Several parts are waited for, one after another: memory is needed for a copy of one only.

    Raises:
        Error: if the exchange of one of several parts fails.
    """
    if _is_whole(parts, parameters):
        return exchange(buffer, parts[0])
    gradients = split_by_parameter(buffer, parameters)
    of_parameter = dict(zip(map(id, parameters), gradients, strict=True))
    for part in parts:
        places = [of_parameter[id(parameter)] for parameter in part.parameters]
        gathered = torch.cat(places)
        exchange(gathered, part).wait()
        results = torch.split(gathered, [place.numel() for place in places])
        for place, result in zip(places, results, strict=True):
            place.copy_(result)
    devices: list[int | str | torch.device] = []
    if buffer.device.type != "cpu":
        devices.append(buffer.device)
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future(devices=devices)
    future.set_result(buffer)
    return future


def synchronize_apart(
    buffer: torch.Tensor, parameters: list[torch.Tensor], pieces: list[list[int]], start: Start
) -> torch.futures.Future[torch.Tensor]:
    """Start to synchronize pieces of ``buffer`` as if each was a bucket; return a future of it.

    Nobody waits: a copy of the bucket is needed until the future is done.

    Args:
        buffer: the gradients of ``parameters``.
        parameters: whose gradients they are, in this order.
        pieces: the places of each piece's parameters among these.
        start: starts the exchange of a piece.

    Raises:
        Error: if an exchange cannot be started.
    """
    if len(pieces) == 1:
        return start(buffer, parameters)
    places = split_by_parameter(buffer, parameters)
    started = [
        start(torch.cat([places[i] for i in piece]), [parameters[i] for i in piece])
        for piece in pieces
    ]
    result = _C.TensorFuture(buffer)

    def complete(index: int) -> None:
        if index < len(started):
            started[index].add_done_callback(lambda _: complete(index + 1))
            return
        try:
            for future, piece in zip(started, pieces, strict=True):
                # All are done. On a GPU this orders what follows behind each of them.
                averages = torch.split(future.wait(), [places[i].numel() for i in piece])
                for i, average in zip(piece, averages, strict=True):
                    places[i].copy_(average)
        except Exception as error:
            result.fail(*described(error))
        else:
            result.succeed()

    complete(0)
    return result.future


def _is_whole(parts: list[Part], parameters: list[torch.Tensor]) -> bool:
    return len(parts) == 1 and list(map(id, parts[0].parameters)) == list(map(id, parameters))
