"""Simulated ranks do what real ranks do: same results, same bytes, same residuals."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import FEATURES, batch, mlp, residuals

NUM_STEPS = 4
OPTIONS: list[dict[str, Any]] = [
    {"codec": "fp32"},
    {"codec": "int4"},
    {"codec": "sign", "algorithm": "ring", "warmup_steps": 2},
    {"codec": "topk:0.01", "algorithm": "gather", "warmup_steps": 0},
    {"codec": "topk:0.02", "algorithm": "scatter_gather", "warmup_steps": 1, "max_norm": 0.5},
]

Trained = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]


def backward(model: nn.Module, step: int, rank: int) -> None:
    inputs, labels = batch(step, rank)
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def one_layer() -> nn.Module:
    # With more parameters than one, DDP has them in another order in its first step.
    torch.manual_seed(0)
    return nn.Linear(FEATURES, 151, bias=False)


def train_for_real(options: dict[str, Any]) -> Trained:
    model = DistributedDataParallel(one_layer())
    state = fastcomm.register(model, **options)
    optimizer = optimizer_of(model)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        backward(model, step, dist.get_rank())
        optimizer.step()
    return model.module.state_dict(), residuals(state), state.stats.wire_bytes


def simulate(num_ranks: int, options: dict[str, Any]) -> list[Trained]:
    model = one_layer()
    simulation = fastcomm.Simulation(model, num_ranks, **options)
    optimizer = optimizer_of(model)
    for step in range(NUM_STEPS):
        for rank in range(num_ranks):
            backward(model, step, rank)
            simulation.collect(rank)
        simulation.synchronize()
        optimizer.step()
        optimizer.zero_grad()
    return [
        (model.state_dict(), residuals(state), state.stats.wire_bytes)
        for state in simulation.states
    ]


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_simulated_ranks_end_with_the_bits_and_bytes_of_real_ones(
    options: dict[str, Any], num_ranks: int
) -> None:
    expected = ranks.run(num_ranks, train_for_real, options)
    # There, too, so that torch computes with as many threads.
    (found,) = ranks.run(1, simulate, num_ranks, options)
    for real, simulated in zip(expected, found, strict=True):
        for its, theirs in zip(real[:2], simulated[:2], strict=True):
            assert its.keys() == theirs.keys()
            for name in its:
                assert torch.equal(its[name].flatten(), theirs[name].flatten()), name
        assert real[2] == simulated[2]


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4:stochastic", "topk:0.01"])
def test_sixty_four_ranks_average_their_gradients(codec: str) -> None:
    model = mlp()
    options: dict[str, Any] = {"error_feedback": "stochastic" not in codec, "warmup_steps": 0}
    simulation = fastcomm.Simulation(model, 64, codec, **options)
    gradients = [torch.zeros(parameter.numel()) for parameter in model.parameters()]
    for rank in range(64):
        backward(model, 0, rank)
        for total, parameter in zip(gradients, model.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad.flatten() / 64
        simulation.collect(rank)
    simulation.synchronize()
    tolerance = {"fp32": 1e-5, "int8": 0.1, "int4:stochastic": 2.0, "topk:0.01": 1.0}[codec]
    for expected, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None
        error = (parameter.grad.flatten() - expected).norm() / expected.norm()
        assert error <= tolerance
    assert simulation.stats.steps == 1
    left = [residuals(state) for state in simulation.states]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        missing = sum((of_rank[name].double() for of_rank in left if name in of_rank), start=0)
        delivered = parameter.grad.flatten().double() + missing / 64
        index = [n for n, _ in model.named_parameters()].index(name)
        if options["error_feedback"]:
            torch.testing.assert_close(delivered.float(), gradients[index], rtol=1e-4, atol=1e-6)


def test_gradients_keep_the_memory_format_of_their_parameters() -> None:
    model = nn.Conv2d(8, 16, 3, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model(torch.randn(2, 8, 6, 6)).sum().backward()
    expected = model.weight.grad
    assert expected is not None
    simulation = fastcomm.Simulation(model, 2, "fp32")
    simulation.collect(0)
    model.weight.grad = expected.clone()
    simulation.collect(1)
    simulation.synchronize()
    assert model.weight.grad is not None
    assert model.weight.grad.stride() == model.weight.stride()
    assert torch.equal(model.weight.grad, expected)


def test_rank_that_was_forgotten_is_named() -> None:
    model = mlp()
    simulation = fastcomm.Simulation(model, 3, "int8")
    for rank in (0, 2):
        backward(model, 0, rank)
        simulation.collect(rank)
    with pytest.raises(fastcomm.ArgumentError, match=r"rank 1.*collect"):
        simulation.synchronize()


def test_gradients_of_a_rank_are_collected_once() -> None:
    model = mlp()
    simulation = fastcomm.Simulation(model, 2)
    simulation.collect(1)
    with pytest.raises(fastcomm.ArgumentError, match="rank 1 were collected already"):
        simulation.collect(1)
    for rank in (-1, 2):
        with pytest.raises(fastcomm.ArgumentError, match=f"no rank {rank} of 2"):
            simulation.collect(rank)


def test_states_go_on_with_another_number_of_ranks() -> None:
    model = one_layer()
    first = fastcomm.Simulation(model, 4, "int4")
    for rank in range(4):
        backward(model, 0, rank)
        first.collect(rank)
    first.synchronize()
    second = fastcomm.Simulation(model, 2, "int4")
    second.load_state_dicts(first.state_dicts())
    sums = [
        torch.stack([s["residuals"]["weight"] for s in simulation.state_dicts()]).sum(0)
        for simulation in (first, second)
    ]
    torch.testing.assert_close(sums[0], sums[1])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [((0, "int8"), "world_size 0"), ((2, "int9"), "unknown codec 'int9'")],
)
def test_arguments_that_cannot_work_are_named(arguments: tuple[int, str], what: str) -> None:
    with pytest.raises(fastcomm.ArgumentError, match=what):
        fastcomm.Simulation(mlp(), *arguments)


def test_model_without_gradients_is_an_error() -> None:
    model = mlp().requires_grad_(False)
    with pytest.raises(fastcomm.ArgumentError, match="no parameters"):
        fastcomm.Simulation(model, 2)
