"""Residuals that follow the learning rate, and residuals that fade."""

from typing import Any

import pytest
import torch
from torch import nn

import fastcomm
from given_gradients import GivenGradients, one_matrix, random_gradients


def following(
    group: GivenGradients, **options: Any
) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.SGD(group.model.parameters(), lr=0.1)
    group.simulation.follow_learning_rate(optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, **options)
    return optimizer, scheduler


def test_what_was_left_out_makes_the_update_of_its_own_learning_rate() -> None:
    model = one_matrix()
    group = GivenGradients(model, 2, "topk:0.05", warmup_steps=0)
    optimizer, scheduler = following(group, step_size=1, gamma=0.1)
    zeros = [{"weight": torch.zeros(64, 64)}] * 2
    first = random_gradients(model, 2)
    update = 0.1 * group.average(first)["weight"]
    optimizer.step()
    scheduler.step()
    before = [group.residual(rank, "weight") for rank in range(2)]
    # Gradients of zero: what comes now is nothing but residuals, in steps of a tenth of the rate.
    average = group.average(zeros)["weight"]
    update += optimizer.param_groups[0]["lr"] * average
    for rank in range(2):
        left = group.residual(rank, "weight")
        kept = left.abs() > 0.5 * before[rank].abs()
        kept &= before[rank] != 0
        torch.testing.assert_close(left[kept], 10 * before[rank][kept])
    for _ in range(150):
        update += optimizer.param_groups[0]["lr"] * group.average(zeros)["weight"]
    expected = 0.1 * torch.stack([g["weight"] for g in first]).mean(0)
    torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-5)


def test_each_parameter_group_has_its_own_rate() -> None:
    model = nn.ModuleDict({"a": nn.Linear(40, 40, bias=False), "b": nn.Linear(40, 40, bias=False)})
    group = GivenGradients(model, 2, "int4")
    optimizer = torch.optim.SGD(
        [{"params": model["a"].parameters()}, {"params": model["b"].parameters()}], lr=0.1
    )
    group.simulation.follow_learning_rate(optimizer)
    group.average(random_gradients(model, 2, 0))
    group.average(random_gradients(model, 2, 1))
    before = {name: group.residual(0, f"{name}.weight") for name in "ab"}
    state = group.simulation.states[0]
    optimizer.param_groups[1]["lr"] = 0.05
    state._feedback.learning_rates.rescale(state._residuals.rescale_residual)
    assert torch.equal(group.residual(0, "a.weight"), before["a"])
    assert torch.equal(group.residual(0, "b.weight"), 2 * before["b"])


def test_small_changes_wait_until_they_add_up() -> None:
    group = GivenGradients(one_matrix(), 2, "int4")
    optimizer, _ = following(group, step_size=1)
    group.average(random_gradients(group.model, 2, 0))
    group.average(random_gradients(group.model, 2, 1))
    before = group.residual(0, "weight")
    state = group.simulation.states[0]
    for rate, factor in ((0.0996, 1.0), (0.0992, 1.0), (0.098, 0.1 / 0.098), (0.0, 0.1 / 0.098)):
        optimizer.param_groups[0]["lr"] = rate
        state._feedback.learning_rates.rescale(state._residuals.rescale_residual)
        torch.testing.assert_close(group.residual(0, "weight"), before * factor)


def test_the_rate_that_residuals_are_in_units_of_is_part_of_the_state() -> None:
    group, other = (GivenGradients(one_matrix(), 2, "int4") for _ in range(2))
    following(group, step_size=1)
    group.average(random_gradients(group.model, 2))
    group.average(random_gradients(group.model, 2))
    saved = group.state(0)
    assert saved["residuals"]["weight"].any()
    optimizer, _ = following(other, step_size=1)
    state = other.simulation.states[0]
    state.load_state_dict(saved)
    optimizer.param_groups[0]["lr"] = 0.2  # changed while training had stopped
    state._feedback.learning_rates.rescale(state._residuals.rescale_residual)
    assert torch.equal(other.residual(0, "weight"), 0.5 * saved["residuals"]["weight"].flatten())


def test_group_without_a_learning_rate_is_no_obstacle() -> None:
    model = nn.ModuleDict({"a": nn.Linear(40, 40, bias=False), "b": nn.Linear(40, 40, bias=False)})
    group = GivenGradients(model, 2, "int4")
    groups: list[Any] = [
        {"params": model["a"].parameters(), "lr": 0.0},
        {"params": model["b"].parameters()},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    group.simulation.follow_learning_rate(optimizer)
    for step in range(3):
        group.average(random_gradients(model, 2, step))
    before = group.residual(0, "b.weight")
    optimizer.param_groups[1]["lr"] = 0.05
    state = group.simulation.states[0]
    state._feedback.learning_rates.rescale(state._residuals.rescale_residual)
    assert torch.equal(group.residual(0, "b.weight"), 2 * before)


def test_only_an_optimizer_can_be_followed() -> None:
    state = fastcomm.Simulation(one_matrix(), 2, "int4").states[0]
    with pytest.raises(fastcomm.ArgumentError, match="takes an optimizer, got float"):
        state.follow_learning_rate(0.1)  # type: ignore[arg-type]


def test_residuals_fade_where_they_are_told_to() -> None:
    group = GivenGradients(
        one_matrix(), 2, "topk:0.001", warmup_steps=0, policy={}, residual_decay=0.5
    )
    group.average(random_gradients(group.model, 2))
    before = group.residual(0, "weight")
    group.average([{"weight": torch.zeros(64, 64)}] * 2)
    after = group.residual(0, "weight")
    kept = after.abs() > 0.1 * before.abs()
    assert kept.sum() > 4000
    assert torch.equal(after[kept], 0.5 * before[kept])
