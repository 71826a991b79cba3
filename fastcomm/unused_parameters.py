"""What was delivered to parameters that no rank used, and comes back to the residuals.

With ``find_unused_parameters`` DDP leaves the gradient of a parameter alone that was used on no
rank, whatever its bucket holds: the residuals that an exchange delivered for it. Only DDP knows
that, after all exchanges; then each rank takes back its share of what was delivered. Ranks that
have joined (DDP's ``join()``) hear nothing of it: the others take back their shares, too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastcomm.bucket_views import as_real, shaped_as, split_by_parameter


class Deliveries:
    """The buckets of one step, and whether DDP took what they hold.

    Args:
        world_size: returns the number of ranks.
        is_adding: returns whether parameters keep what they had, unclipped; see accumulation.py.
    """

    def __init__(
        self, world_size: Callable[[], int], is_adding: Callable[[list[torch.Tensor]], bool]
    ) -> None:
        self._world_size = world_size
        self._is_adding = is_adding
        self.may_keep_gradients = False  # a gradient from before the step may be left as it was
        self.factor: torch.Tensor | None = None  # of the step's gradients, where they were clipped
        # How many ranks have data and take something back, if not all.
        self.num_givers: torch.futures.Future[torch.Tensor] | None = None
        self._buckets: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
        self._ids: set[int] = set()  # of their parameters

    def clear(self) -> None:
        """Forget the buckets: a new step begins."""
        self._buckets.clear()
        self._ids.clear()

    @property
    def num_parameters(self) -> int:
        """How many parameters the buckets have."""
        return len(self._ids)

    def has_any_of(self, parameters: list[torch.Tensor]) -> bool:
        """Return whether any of these parameters was in a bucket of the step."""
        return not self._ids.isdisjoint(map(id, parameters))

    def note(self, buffer: torch.Tensor, parameters: list[torch.Tensor]) -> None:
        """Note a bucket, into whose buffer an average is to come."""
        self._buckets.append((buffer, parameters))
        self._ids.update(map(id, parameters))

    def take_back(self, residual_of: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Add what DDP did not take to the residuals, after it has finished the step.

        The average times all ranks by those that take it back, from each: together that is the sum.
        A gradient that was there before the step is part of it, and still there.
        """
        share = 1.0
        if self.num_givers is not None:
            share = self._world_size() / max(1.0, self.num_givers.wait().item())
        for buffer, parameters in self._buckets:
            if not self.may_keep_gradients and all(p.grad is not None for p in parameters):
                continue
            averages = split_by_parameter(buffer, parameters)
            for parameter, average in zip(parameters, averages, strict=True):
                gradient = None if parameter.grad is None else as_real(parameter.grad)
                residual = residual_of(parameter)
                if residual is None or (gradient is not None and not self.may_keep_gradients):
                    continue
                average = shaped_as(parameter, average)
                returned = share * average.float()
                if gradient is not None:
                    if _is_taken(gradient, average):
                        continue
                    sent = gradient.float()
                    if self.factor is not None and not self._is_adding([parameter]):
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
