"""Several synchronizing backward passes for one step of the optimizer.

DDP's buckets then hold what earlier passes delivered, plus the new gradient. For an average that
makes no difference: all ranks have the same of the former. Momentum correction and clipping are
about new gradients only, so that what was delivered is taken out first and put back afterwards::

    bucket <- bucket - delivered;  exchange(bucket);  bucket <- bucket + delivered

It is what a parameter's ``grad`` holds when the next backward pass reaches it, before anything is
added to it there: nothing (``zero_grad()``), zeros, or what was delivered.
"""

from __future__ import annotations

import weakref

import torch

from fastcomm import _C
from fastcomm.bucket_views import as_real, shaped_as, split_by_parameter
from fastcomm.errors import described


class Accumulation:
    """Keeps what was delivered to parameters while more is added to it."""

    def __init__(self) -> None:
        self._watched: set[int] = set()  # all by the id of the parameter
        self._delivered: dict[int, torch.Tensor] = {}
        self._synchronized: set[int] = set()  # whose gradients were, and not looked at since
        self._adding: set[int] = set()  # to which this step adds

    def begin_step(self) -> None:
        """Note that a step begins."""
        self._adding.clear()

    def is_adding(self, parameters: list[torch.Tensor]) -> bool:
        """Return whether this step adds to what these parameters were given before."""
        return not self._adding.isdisjoint(map(id, parameters))

    def take_out(self, buffer: torch.Tensor, parameters: list[torch.Tensor]) -> torch.Tensor | None:
        """Subtract what was delivered before from a bucket, and return it: None if nothing was.

        All ranks that have data return the same.
        """
        self._watch(parameters)
        for parameter in parameters:
            self.look(parameter)  # what this rank did not use, others may have
        kept = [self._delivered.pop(id(parameter), None) for parameter in parameters]
        self._synchronized.update(map(id, parameters))
        if not any(each is not None and bool(each.any()) for each in kept):
            return None
        delivered = torch.zeros_like(buffer)
        places = split_by_parameter(delivered, parameters)
        for parameter, each, place in zip(parameters, kept, places, strict=True):
            if each is not None:
                # What is not finite stays in the bucket, and reaches all ranks again.
                real = as_real(each)
                shaped_as(parameter, place).copy_(torch.where(real.isfinite(), real, 0.0))
        buffer -= delivered
        self._adding.update(map(id, parameters))
        return delivered

    def look(self, parameter: torch.Tensor) -> None:
        """Keep what a parameter was given, if it still has it; a gradient is about to be added."""
        if parameter.grad is None:
            self._delivered.pop(id(parameter), None)
        elif id(parameter) in self._synchronized:
            self._delivered[id(parameter)] = parameter.grad.detach().clone()
        self._synchronized.discard(id(parameter))

    def _watch(self, parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            if id(parameter) not in self._watched:
                self._watched.add(id(parameter))
                parameter.register_hook(_Look(self, parameter))  # type: ignore[no-untyped-call]


class _Look:
    """The hook on a parameter, which keeps neither it nor the accumulation alive."""

    def __init__(self, accumulation: Accumulation, parameter: torch.Tensor) -> None:
        self._accumulation = weakref.ref(accumulation)
        self._parameter = weakref.ref(parameter)

    def __call__(self, _: torch.Tensor) -> None:
        accumulation, parameter = self._accumulation(), self._parameter()
        if accumulation is not None and parameter is not None:
            accumulation.look(parameter)


def put_back(
    future: torch.futures.Future[torch.Tensor], buffer: torch.Tensor, delivered: torch.Tensor
) -> torch.futures.Future[torch.Tensor]:
    """Return a future of ``buffer``, to which ``delivered`` is added when ``future`` is done."""
    result = _C.TensorFuture(buffer)

    def complete(inner: torch.futures.Future[torch.Tensor]) -> None:
        try:
            inner.value().add_(delivered)
        except Exception as error:
            result.fail(*described(error))
        else:
            result.succeed()

    future.add_done_callback(complete)
    return result.future
