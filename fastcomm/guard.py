"""A watch over residuals that grow: more is left out than can be delivered in time.

Error feedback delays a part of the gradient by about as many steps as the norm of the residual is
times that of a gradient. The delay takes from the learning rates at which training is stable, as
staleness does ("Error Feedback Fixes SignSGD", Karimireddy et al., ICML 2019, theorem II: the term
of the compression grows with the square of learning rate times residual). So every so many steps
the guard compares the two norms, and says so, or sends more until the ratio has come down.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from fastcomm.codecs import Codec
from fastcomm.errors import ArgumentError

MODES = ("off", "warn", "adapt")

# Of the norms of residual and gradient. Above the first is too much; when sending more has brought
# it below the second, sending less is tried again.
LARGEST_RATIO = 100.0
_RELAXED_SHARE = 0.25

_STEPS_BETWEEN_CHECKS = 50
_MOST_LEVELS = 4


class ResidualGuard:
    """Watches the ratio of the norms of residuals and gradients.

    Args:
        mode: ``off``; ``warn``: rank 0 warns once, of its own residuals, and others look at none;
            ``adapt``: all ranks move to a denser codec together, and back.
        largest_ratio: above which it is too much.
        rank: returns this one.
        momentum: of the hook: residuals then hold velocities, which are 1 / (1 - momentum) times as
            large as gradients.

    Raises:
        ArgumentError: for another mode, or a ratio that is not positive.
    """

    def __init__(
        self,
        mode: str,
        largest_ratio: float,
        rank: Callable[[], int] = lambda: 0,
        momentum: float = 0.0,
    ) -> None:
        if mode not in MODES:
            raise ArgumentError(f"unknown guard {mode!r}; known: {', '.join(MODES)}")
        if not largest_ratio > 0:
            raise ArgumentError(f"guard_ratio {largest_ratio:g} must be positive")
        self.mode = mode
        self._rank = rank
        self.level = 0  # how many times denser codecs are than asked for
        self._largest_ratio = largest_ratio
        self._scale = 1 - momentum  # of residuals, to gradients
        self._has_warned = False
        self._squares: list[torch.Tensor] = []  # of residual and gradient, of a step's buckets

    def refusals(self) -> list[str]:
        """Return why this cannot be used with sharded parameters, if so."""
        if self.mode != "adapt":
            return []
        return [
            'guard="adapt" would choose other codecs where other shards are, also for parameters '
            'that are not sharded, which would drift apart; use guard="warn"'
        ]

    def watches(self, step: int) -> bool:
        """Return whether the norms of a step are wanted."""
        if self.mode == "off" or step % _STEPS_BETWEEN_CHECKS != _STEPS_BETWEEN_CHECKS - 1:
            return False
        return self.mode == "adapt" or self._rank() == 0

    def add(self, gradients: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Take in a bucket, before it is exchanged."""
        norm = torch.linalg.vector_norm(gradients, dtype=torch.float32)
        of_residual = torch.zeros_like(norm)
        if residual is not None:
            of_residual = torch.linalg.vector_norm(residual)
        self._squares.append(torch.stack([of_residual, norm]).square())

    def take_squares(self) -> torch.Tensor | None:
        """Return the squared norms of residual and gradient of a watched step, once; else None."""
        if not self._squares:
            return None
        device = self._squares[0].device
        total = torch.stack([squares.to(device) for squares in self._squares]).sum(0)
        self._squares.clear()
        return total

    def judge(self, squares: torch.Tensor, rate_share: float = 1.0) -> None:
        """Warn, or change the level.

        Args:
            squares: of the norms; in mode ``adapt`` the sums over all ranks.
            rate_share: the learning rate, as a share of the largest so far, if residuals follow it:
                then they grow as it falls, and no delay grows with them.
        """
        residual, gradient = squares.tolist()
        if not math.isfinite(residual + gradient) or gradient == 0.0:
            return
        ratio = self._scale * rate_share * math.sqrt(residual / gradient)
        if self.mode == "adapt":
            if ratio > self._largest_ratio:
                self.level = min(self.level + 1, _MOST_LEVELS)
            elif ratio < _RELAXED_SHARE * self._largest_ratio:
                self.level = max(self.level - 1, 0)
        elif ratio > self._largest_ratio and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the residuals are {ratio:.0f} times as large as the gradients: much of what the "
                "codec leaves out is delivered many steps late, which may cost accuracy; "
                'use a denser codec, a longer warm-up or guard="adapt", or lower the learning rate',
                stacklevel=2,
            )

    def codec_at_level(self, codec: Codec) -> Codec:
        """Return what is sent in place of ``codec`` now."""
        for _ in range(self.level):
            codec = codec.denser() or codec
        return codec

    def state_dict(self) -> dict[str, Any]:
        """Return what it has decided so far; flat, as torch.distributed.checkpoint likes it."""
        squares = [of_bucket.tolist() for of_bucket in self._squares]
        return {
            "guard_level": self.level,
            "guard_has_warned": self._has_warned,
            "guard_squares": squares or None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.level = state_dict["guard_level"]
        self._has_warned = state_dict["guard_has_warned"]
        self._squares = [pair_of(squares) for squares in state_dict["guard_squares"] or []]


def pair_of(numbers: list[float]) -> torch.Tensor:
    """Return saved numbers as they were, whatever the program's default dtype and device are."""
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")
