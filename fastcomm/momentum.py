"""Momentum correction: momentum on each rank, before its gradients are compressed.

"Deep Gradient Compression", Lin et al., ICLR 2018, sections 3.1 and 3.2, algorithm 3. With
momentum in the optimizer, what a residual delivers late misses the momentum of the steps between.
So each rank has a *velocity* u, and what is compressed is the velocity, not the gradient g::

    u <- m u + g                        (nesterov: u <- m u + g, and g + m u is compressed)
    residual <- residual + u            then the largest of it are sent, and left out of it
    u <- 0 where this rank has sent     (factor masking; sparse codecs only)

The optimizer has no momentum of its own then: ``torch.optim.SGD(..., momentum=0)``. With a codec
that leaves nothing out, the ranks' average velocity is the velocity of their average gradient:
the update is that of SGD with momentum m. Masking stops the momentum of what was sent: else the
same old gradients, delivered late, would go on to push in a direction that the model has left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastcomm.errors import ArgumentError


@dataclass(frozen=True)
class Momentum:
    """The momentum that the hook applies.

    Args:
        factor: m, in [0, 1); 0: none.
        nesterov: Nesterov's form, as torch.optim.SGD has it.

    Raises:
        ArgumentError: for a factor outside [0, 1).
    """

    factor: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.factor < 1:
            raise ArgumentError(
                f"momentum {self.factor:g} is outside [0, 1); use 0.9, say, and an optimizer with "
                "momentum=0"
            )
        if self.nesterov and not self.factor:
            raise ArgumentError("nesterov=True needs a momentum; use momentum=0.9, say")

    def check_error_feedback(self, error_feedback: bool) -> None:
        """Raise :class:`ArgumentError` if there is nothing to accumulate velocities in."""
        if self and not error_feedback:
            raise ArgumentError(
                f"momentum={self.factor:g} is accumulated in the residuals, which "
                "error_feedback=False does without; use momentum in the optimizer"
            )

    def add(self, gradients: torch.Tensor, velocity: torch.Tensor) -> None:
        """Add gradients of a further backward pass in the same step of the optimizer.

        The velocity was multiplied by the momentum in the first pass of the step, and was sent; now
        it takes in the gradients, and ``gradients`` become what is to be sent in addition. What a
        sparse codec sends of them keeps its momentum: it is masked by first passes only.
        """
        velocity += torch.where(gradients.isfinite(), gradients, 0.0)
        if self.nesterov:
            gradients *= 1 + self.factor

    def __str__(self) -> str:
        return f"{self.factor:g}{' nesterov' if self.nesterov else ''}"

    def __bool__(self) -> bool:
        return self.factor > 0
