"""A rank's error feedback: its residuals, and what is done to them between two exchanges.

In this order: they follow the learning rate, are looked at by the guard, fade, and take in the
velocity (on the lane that runs the exchange).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from fastcomm.codecs import Codec
from fastcomm.connection import Connection, sum_over_ranks
from fastcomm.errors import ArgumentError
from fastcomm.guard import ResidualGuard, pair_of
from fastcomm.learning_rates import LearningRates
from fastcomm.momentum import Momentum
from fastcomm.residuals import BucketLayout, ResidualStore
from fastcomm.state_checks import checksum

# The bucket index of the norms that ranks exchange for the guard: no bucket's.
_GUARD_INDEX = 0xFFFF


def check_error_feedback(
    is_wanted: bool,
    codecs: Iterable[Codec],
    momentum: Momentum,
    residual_decay: float,
    guard: str,
) -> None:
    """Raise :class:`ArgumentError` if anything asked for needs residuals, or must have none."""
    for codec in codecs:
        codec.check_error_feedback(is_wanted)
    momentum.check_error_feedback(is_wanted)
    if not is_wanted and (residual_decay < 1 or guard == "adapt"):
        raise ArgumentError(
            f"residual_decay={residual_decay:g} and guard={guard!r} are about residuals, which "
            "error_feedback=False does without; leave them out"
        )


class ErrorFeedback:
    """What stays of gradients from step to step.

    Args:
        residuals: where they are.
        momentum: what the velocities are multiplied by.
        residual_decay: what residuals are multiplied by before each step.
        guard: what watches them.

    Raises:
        ArgumentError: for a decay outside [0, 1].
    """

    def __init__(
        self,
        residuals: ResidualStore,
        momentum: Momentum,
        residual_decay: float,
        guard: ResidualGuard,
    ) -> None:
        if not 0 <= residual_decay <= 1:
            raise ArgumentError(f"residual_decay {residual_decay:g} is outside [0, 1]")
        self.residuals = residuals
        self.momentum = momentum
        self.guard = guard
        self.learning_rates = LearningRates()
        self._residual_decay = residual_decay
        self._grad_scale: float | None = None  # not known
        self._squares_of_ranks: torch.futures.Future[torch.Tensor] | None = None

    @property
    def grad_scale(self) -> float:
        """What gradients are multiplied by, and with them residuals and velocities."""
        return self._grad_scale or 1.0

    def follow_grad_scale(self, scale: float | torch.amp.GradScaler) -> None:
        """Rescale everything to gradients that are multiplied by ``scale`` from now on.

        Raises:
            ArgumentError: if the scale is not positive and finite.
        """
        scale = float(scale if isinstance(scale, (float, int)) else scale.get_scale())
        if not 0 < scale < math.inf:
            raise ArgumentError(f"the scale of the gradients is {scale}; it must be positive")
        if self._grad_scale not in (None, scale):
            self.residuals.rescale(scale / self.grad_scale)
        self._grad_scale = scale

    def begin_step(self, step: int, group: Connection, device: torch.device) -> None:
        """Bring the residuals up to date, and let the guard judge the step before.

        Where ranks decide together, it judges the one before that: their norms are exchanged while
        a step is under way, so that nobody waits. ``device``: where gradients are.
        """
        self.learning_rates.rescale(self.residuals.rescale_residual)
        rate_share = self.learning_rates.share_of_largest()
        if self._squares_of_ranks is not None:
            self.guard.judge(self._squares_of_ranks.wait(), rate_share)
            self._squares_of_ranks = None
        squares = self.guard.take_squares()
        if squares is None:
            return
        if self.guard.mode == "warn":
            self.guard.judge(squares, rate_share)
            return
        squares = squares.to(device)  # of a checkpoint, they are on the CPU
        self._squares_of_ranks = sum_over_ranks(squares, group, step, _GUARD_INDEX)

    def residual_to_send(
        self,
        layout: BucketLayout,
        gradients: torch.Tensor,
        step: int,
        *,
        has_data: bool,
        delivers_own: bool,
    ) -> torch.Tensor | None:
        """Return what an exchange adds to ``gradients`` and leaves the rest in.

        Args:
            layout: of the bucket.
            gradients: of the bucket.
            step: which step it is.
            has_data: whether this rank has data; if not, it takes part for the others only.
            delivers_own: whether its residuals are to be delivered.
        """
        residual = layout.residual_to_send(delivers_own)
        if self.guard.watches(step):  # every rank, whatever it has: they exchange what they find
            self.guard.add(gradients, residual)
        if residual is not None and has_data and self._residual_decay < 1:
            residual.mul_(self._residual_decay)
        return residual

    def state_dict(self) -> dict[str, Any]:
        """Return everything, by parameter name where it is of parameters."""
        sums = self._squares_of_ranks
        saved = self.residuals.saved()
        return {
            "grad_scale": self._grad_scale,
            **self.learning_rates.state_dict(),
            "guard_sums": None if sums is None else sums.wait().tolist(),
            **self.guard.state_dict(),
            **saved,
            "checksum": checksum(values for named in saved.values() for values in named.values()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ArgumentError: if it is of another model.
        """
        self.residuals.load(state_dict["residuals"], state_dict["velocities"])
        self._squares_of_ranks = None
        if state_dict["guard_sums"] is not None:
            self._squares_of_ranks = torch.futures.Future()
            self._squares_of_ranks.set_result(pair_of(state_dict["guard_sums"]))
        self._grad_scale = state_dict["grad_scale"]
        self.guard.load_state_dict(state_dict)
        self.learning_rates.load_state_dict(state_dict)
