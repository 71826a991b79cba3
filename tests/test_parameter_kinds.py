"""Parameters of any kind that a model may have: complex ones, scalars, empty and tied ones."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks


class Kinds(nn.Module):
    """Has a complex matrix, not contiguous, a scalar, an empty and a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.real = nn.Linear(64, 40)
        self.tied = nn.Linear(64, 40)
        self.tied.weight = self.real.weight
        self.waves = nn.Parameter(torch.randn(50, 40, dtype=torch.complex64).t())
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(0, 5))

    def forward(self, inputs: torch.Tensor, with_waves: bool = True) -> torch.Tensor:
        """Return activations."""
        real: torch.Tensor = self.scale * (self.real(inputs) + self.tied(inputs))
        real = real + self.nothing.sum()
        return (real.to(torch.complex64) @ self.waves).abs() if with_waves else real


def gradients_of(model: nn.Module, step: int, with_waves: bool = True) -> dict[str, torch.Tensor]:
    model.zero_grad()
    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
    model(torch.randn(8, 64, generator=generator), with_waves).square().mean().backward()
    return {
        name.removeprefix("module."): torch.view_as_real(p.grad) if p.is_complex() else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def balance(codec: str, options: dict[str, Any], uses_waves: list[bool]) -> None:
    ddp_options: dict[str, Any] = {} if all(uses_waves) else {"find_unused_parameters": True}
    plain = DistributedDataParallel(Kinds(), **ddp_options)
    model = DistributedDataParallel(Kinds(), **ddp_options)
    state = fastcomm.register(model, codec, warmup_steps=0, **options)
    total: dict[str, torch.Tensor] = {}
    delivered: dict[str, torch.Tensor] = {}
    for step, with_waves in enumerate(uses_waves):
        for each, sums in ((plain, total), (model, delivered)):
            for name, gradient in gradients_of(each, step, with_waves).items():
                sums[name] = sums.get(name, 0) + gradient.double()
    saved = state.state_dict()
    other = fastcomm.register(DistributedDataParallel(Kinds()), codec, **options)
    other.load_state_dict(saved)
    assert other.state_dict()["checksum"] == saved["checksum"]
    assert saved["residuals"]["waves"].shape == (40, 50, 2)
    for name, expected in total.items():
        left = saved["residuals"].get(name, torch.zeros(expected.shape)).double()
        dist.all_reduce(left)
        found = delivered.get(name, torch.zeros(expected.shape)) + left / dist.get_world_size()
        assert (found - expected).norm() <= 1e-6 * expected.norm() + 1e-12, name


@pytest.mark.parametrize("uses_waves", [[True] * 3, [True, False, True, False]], ids=str)
@pytest.mark.parametrize("codec", ["int4", "topk:0.05", "sign"])
def test_nothing_is_lost_of_parameters_of_any_kind(codec: str, uses_waves: list[bool]) -> None:
    ranks.run(2, balance, codec, {}, uses_waves)


def complex_with_momentum() -> None:
    plain, ours = Kinds(), Kinds()
    reference, model = DistributedDataParallel(plain), DistributedDataParallel(ours)
    fastcomm.register(model, "fp32", momentum=0.9)
    expected = torch.optim.SGD(plain.parameters(), 1e-5, momentum=0.9)
    found = torch.optim.SGD(ours.parameters(), 1e-5)
    for step in range(4):
        for each, optimizer in ((reference, expected), (model, found)):
            optimizer.zero_grad()
            for micro_step in range(2):
                generator = torch.Generator().manual_seed(20 * step + 2 * micro_step)
                each(torch.randn(8, 64, generator=generator)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(dict(ours.named_parameters()), dict(plain.named_parameters()))


def test_complex_parameters_have_momentum() -> None:
    ranks.run(2, complex_with_momentum)


def refused(dtype: torch.dtype) -> str:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(dtype))
    with pytest.raises(fastcomm.ArgumentError) as caught:
        fastcomm.register(DistributedDataParallel(model), "int8")
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_other_dtypes_are_refused_before_training_starts(dtype: torch.dtype) -> None:
    (message,) = ranks.run(1, refused, dtype)
    assert f"'1.weight' has dtype {dtype}" in message
    assert "model.float()" in message
