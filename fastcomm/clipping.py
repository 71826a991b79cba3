"""Clipping a rank's own gradient, before anything is accumulated.

"Deep Gradient Compression", Lin et al., ICLR 2018, section 3.3: gradients that wait in a residual
add up, so that the sum cannot be clipped in their place. Each rank clips its own gradient, to
N^(1/2) times the norm that the average of N ranks is to be clipped to: averaging N independent
gradients of one norm divides it by N^(1/2). (The paper has N^(-1/2), for gradients that are divided
by N beforehand.) Where ranks have the same gradient, its norm stays that much larger.

The norm is that of the whole gradient, as torch.nn.utils.clip_grad_norm_ has it. It is known when
the last bucket is there: until then buckets wait, and nothing overlaps with the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastcomm import _C
from fastcomm.bucket_views import split_by_parameter
from fastcomm.errors import ArgumentError, described
from fastcomm.regrouping import Names, Start


@dataclass
class _Held:
    buffer: torch.Tensor
    parameters: list[torch.Tensor]
    result: _C.TensorFuture


class LocalClipping:
    """Holds the buckets of a step, and lets them go with their norm clipped.

    Args:
        max_norm: of the average gradient; None: nothing is clipped, and nothing held.
        world_size: returns the number of ranks.
        names: returns the names of parameters.

    Raises:
        ArgumentError: if ``max_norm`` is not positive.
    """

    def __init__(self, max_norm: float | None, world_size: Callable[[], int], names: Names) -> None:
        if max_norm is not None and not 0 < max_norm < math.inf:
            raise ArgumentError(f"max_norm {max_norm:g} must be positive; leave it out for none")
        self._max_norm = max_norm
        self._world_size = world_size
        self._names = names
        self._held: list[_Held] = []

    @property
    def is_wanted(self) -> bool:
        """Whether buckets are to be held."""
        return self._max_norm is not None

    def refusals(self) -> list[str]:
        """Return why this cannot be used with sharded parameters, if so."""
        if self._max_norm is None:
            return []
        return [
            f"max_norm={self._max_norm:g} is about the norm of the whole gradient, of which this "
            "rank has shards only, so that ranks would clip differently; leave max_norm out"
        ]

    def hold(
        self, buffer: torch.Tensor, parameters: list[torch.Tensor]
    ) -> torch.futures.Future[torch.Tensor]:
        """Hold a bucket; return the future of its average."""
        held = _Held(buffer, parameters, _C.TensorFuture(buffer))
        self._held.append(held)
        return held.result.future

    def release(self, start: Start, grad_scale: float) -> torch.Tensor | None:
        """Clip what is held, and start its exchanges.

        Args:
            start: starts the exchange of a bucket.
            grad_scale: by what a GradScaler has multiplied the gradients.

        Returns:
            What the gradients were multiplied by; None if nothing was held, or an error occurred,
            which all that was held then has.
        """
        try:
            factor = self._factor(grad_scale) if self._held else None
        except Exception as error:
            self.fail(error)
            return None
        held, self._held = self._held, []
        for each in held:
            try:
                assert factor is not None
                each.buffer.mul_(factor.to(each.buffer.device))
                inner = start(each.buffer, each.parameters)
            except Exception as error:
                each.result.fail(*described(error))
                continue
            inner.add_done_callback(_completion(each.result))
        return factor

    def fail(self, error: Exception) -> None:
        """Let go of what is held, with an error: nobody shall wait for it."""
        held, self._held = self._held, []
        for each in held:
            each.result.fail(*described(error))

    def _factor(self, grad_scale: float) -> torch.Tensor:
        assert self._max_norm is not None
        limit = self._max_norm * grad_scale * math.sqrt(self._world_size())
        device = self._held[0].buffer.device
        # By parameter, in the order of their names: the bits must not depend on which are in a
        # bucket together, which is another thing in the first steps after a checkpoint.
        norms: dict[str, torch.Tensor] = {}
        for each in self._held:
            gradients = split_by_parameter(each.buffer, each.parameters)
            for name, gradient in zip(self._names(each.parameters), gradients, strict=True):
                norms[name] = torch.linalg.vector_norm(gradient, dtype=torch.float32).to(device)
        norm = torch.linalg.vector_norm(torch.stack([norms[name] for name in sorted(norms)]))
        # Nothing is clipped by a norm that is not finite: NaN and Inf must reach every rank.
        return torch.where(norm.isfinite(), (limit / (norm + 1e-6)).clamp(max=1.0), 1.0)


def _completion(
    result: _C.TensorFuture,
) -> Callable[[torch.futures.Future[torch.Tensor]], None]:
    # On a lane, which takes the GIL for it. Nothing that holds the GIL waits for a lane.
    def complete(inner: torch.futures.Future[torch.Tensor]) -> None:
        try:
            inner.value()
        except Exception as error:
            result.fail(*described(error))
        else:
            result.succeed()

    return complete
