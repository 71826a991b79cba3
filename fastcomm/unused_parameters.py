"""What was delivered to parameters that no rank used, and comes back to the residuals.

With ``find_unused_parameters`` DDP leaves the gradient of a parameter alone that was used on no
rank, whatever its bucket holds: the residuals that an exchange delivered for it. Only DDP knows
that, after all exchanges; then each rank takes back its share of what was delivered.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastcomm.bucket_views import shaped_as


class Deliveries:
    """The buckets of one step, and whether DDP took what they hold."""

    def __init__(self) -> None:
        self.may_keep_gradients = False  # a gradient from before the step may be left as it was
        self.factor: torch.Tensor | None = None  # of the step's gradients, where they were clipped
        self._buckets: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    def clear(self) -> None:
        """Forget the buckets: a new step begins."""
        self._buckets.clear()

    def note(self, buffer: torch.Tensor, parameters: list[torch.Tensor]) -> None:
        """Note a bucket, into whose buffer an average is to come."""
        self._buckets.append((buffer, parameters))

    def take_back(self, residual_of: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Add what DDP did not take to the residuals, after it has finished the step.

        The average, from each rank: together that is the sum. A gradient that was there before the
        step is part of it, and still there.
        """
        for buffer, parameters in self._buckets:
            if not self.may_keep_gradients and all(p.grad is not None for p in parameters):
                continue
            averages = torch.split(buffer, [parameter.numel() for parameter in parameters])
            for parameter, average in zip(parameters, averages, strict=True):
                gradient = parameter.grad
                residual = residual_of(parameter)
                if residual is None or (gradient is not None and not self.may_keep_gradients):
                    continue
                average, residual = (shaped_as(parameter, flat) for flat in (average, residual))
                returned = average.float()
                if gradient is not None:
                    if _is_taken(gradient, average):
                        continue
                    sent = gradient.float()
                    if self.factor is not None:
                        sent = sent * self.factor.to(sent.device)
                    returned = returned - sent  # zero if DDP took it
                # What is not finite was announced so, and left the residual as it was.
                residual += torch.where(returned.isfinite(), returned, 0.0)
        self.clear()


def _is_taken(gradient: torch.Tensor, average: torch.Tensor) -> bool:
    if gradient.data_ptr() == average.data_ptr():  # gradient_as_bucket_view
        return True
    # On a GPU, looking would mean to wait.
    return gradient.device.type == "cpu" and torch.equal(gradient, average)
