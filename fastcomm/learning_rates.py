"""Residuals that follow the learning rate.

A residual is a gradient that was not delivered. The update that it stands for is the gradient times
the learning rate *of the steps that left it out*: when the rate changes, the residual is multiplied
by old rate / new rate, so that its delivery makes that update ("Communication-Efficient
Distributed Blockwise Momentum SGD with Error-Feedback", Zheng et al., NeurIPS 2019, algorithm 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fastcomm.errors import ArgumentError

# Schedules change the rate at every step; a pass over all residuals each time would cost as much
# as encoding them. Smaller changes wait until they add up to this.
_SMALLEST_CHANGE = 0.01


class LearningRates:
    """The learning rates of optimizers' parameter groups, as residuals know them."""

    def __init__(self) -> None:
        self._optimizers: list[torch.optim.Optimizer] = []
        self._known: dict[int, float] = {}  # by the index of the group, over all optimizers
        self._largest = 0.0  # that the first group had

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin to look at the learning rates of one more optimizer.

        Raises:
            ArgumentError: if it is no optimizer, or has parameters of one that is followed already.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentError(
                f"follow_learning_rate() takes an optimizer, got {type(optimizer).__name__}"
            )
        if any(optimizer is followed for followed in self._optimizers):
            return
        known = {id(p) for group in self._groups() for p in group["params"]}
        if any(id(p) in known for group in optimizer.param_groups for p in group["params"]):
            raise ArgumentError(
                f"follow_learning_rate() was called with a {type(optimizer).__name__} before that "
                "has some of the same parameters; their residuals can follow one learning rate only"
            )
        self._optimizers.append(optimizer)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def rescale(self, rescale_residual: Callable[[torch.Tensor, float], None]) -> None:
        """Call ``rescale_residual(parameter, factor)`` where the rate has changed.

        A rate of zero changes nothing: with it there are no updates, in whatever units.
        """
        for index, group in enumerate(self._groups()):
            rate = float(group["lr"])
            if rate <= 0 or not math.isfinite(rate):
                continue
            factor = self._known.setdefault(index, rate) / rate
            if abs(factor - 1) < _SMALLEST_CHANGE:
                continue
            self._known[index] = rate
            for parameter in group["params"]:
                rescale_residual(parameter, factor)

    def share_of_largest(self) -> float:
        """Return the first group's rate, as a share of the largest that was seen."""
        rate = self._known.get(0, 1.0)
        self._largest = max(self._largest, rate)
        return rate / self._largest

    def state_dict(self) -> dict[str, Any]:
        """Return the rates that residuals are in units of."""
        groups, rates = list(self._known), list(self._known.values())
        return {"rate_groups": groups, "rates": rates, "largest_rate": self._largest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._known = dict(zip(state_dict["rate_groups"], state_dict["rates"], strict=True))
        self._largest = state_dict["largest_rate"]
