"""A simulation whose virtual ranks have the gradients that a test gives them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import fastcomm

Gradients = dict[str, torch.Tensor]  # by parameter name


class GivenGradients:
    """Synchronizes given gradients of a model's parameters, step after step."""

    def __init__(self, model: nn.Module, num_ranks: int, codec: str, **options: Any) -> None:
        self.model = model
        self.simulation = fastcomm.Simulation(model, num_ranks, codec, **options)

    def average(self, of_ranks: Sequence[Gradients]) -> Gradients:
        """Return what all ranks get for these gradients, one dict for each rank."""
        parameters = dict(self.model.named_parameters())
        for rank, gradients in enumerate(of_ranks):
            for name, gradient in gradients.items():
                parameters[name].grad = gradient.clone().view_as(parameters[name])
            self.simulation.collect(rank)
        self.simulation.synchronize()
        averages = {}
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            averages[name] = parameter.grad
            parameter.grad = None
        return averages

    def state(self, rank: int) -> dict[str, Any]:
        """Return the state of a rank's hook."""
        return self.simulation.states[rank].state_dict()

    def residual(self, rank: int, name: str) -> torch.Tensor:
        """Return the residual of a parameter on a rank, of shape (num_elements,)."""
        found: torch.Tensor = self.state(rank)["residuals"][name]
        return found.reshape(-1)

    def wire_bytes(self, of_ranks: Sequence[Gradients]) -> int:
        """Return the bytes that rank 0 sends to average these gradients."""
        before = self.simulation.states[0].stats.wire_bytes
        self.average(of_ranks)
        return self.simulation.states[0].stats.wire_bytes - before


def one_matrix(rows: int = 64, columns: int = 64) -> nn.Linear:
    """Return a model of one parameter, ``weight``."""
    return nn.Linear(columns, rows, bias=False)


def random_gradients(model: nn.Module, num_ranks: int, seed: int = 0) -> list[Gradients]:
    """Return normally distributed gradients for each rank."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
        for _ in range(num_ranks)
    ]
