"""Residuals that grow beyond what can be delivered are noticed, and, if asked, sent sooner."""

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from fastcomm.guard import ResidualGuard
from given_gradients import GivenGradients, Gradients, one_matrix, random_gradients
from training import backward, mlp

SPARSE: dict[str, Any] = {"codec": "topk:0.001", "warmup_steps": 0, "policy": {}}


def same_gradients(num_ranks: int = 2) -> list[Gradients]:
    """Return gradients that, step after step, add up in the residuals."""
    return random_gradients(one_matrix(), num_ranks, 1)


def grow(num_steps: int, **options: Any) -> list[int]:
    """Return the bytes of each step with the same gradient in all of them."""
    group = GivenGradients(one_matrix(), 2, **SPARSE, **options)
    return [group.wire_bytes(same_gradients()) for _ in range(num_steps)]


def test_growing_residuals_are_warned_of_once_with_what_to_do() -> None:
    with pytest.warns(UserWarning, match=r"the residuals are .* times as large") as caught:
        grow(160, guard_ratio=20)
    (message,) = [str(warning.message) for warning in caught]  # of one rank, once
    assert 'guard="adapt"' in message


@pytest.mark.parametrize(
    "options", [{"guard_ratio": 1e4}, {"guard": "off", "guard_ratio": 20}], ids=str
)
def test_there_is_no_warning_below_the_ratio_or_without_a_guard(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grow(110, **options)


def test_adapting_sends_more_until_the_ratio_has_come_down_and_then_less_again() -> None:
    group = GivenGradients(one_matrix(), 2, **SPARSE, guard="adapt", guard_ratio=20)
    growing = same_gradients()
    sent = [group.wire_bytes(growing) for _ in range(160)]
    target, denser = sent[0], max(sent)
    assert denser > 2 * target
    assert sent[:50] == [target] * 50, "it adapted before it had looked"
    assert group.state(0)["guard_level"] == group.state(1)["guard_level"] > 0
    # Large gradients now: the residuals are small beside them.
    large = [{name: 1e4 * g for name, g in of_rank.items()} for of_rank in growing]
    for step in range(400):
        sent.append(group.wire_bytes(large))
        if step % 2:
            large = [{name: -g for name, g in of_rank.items()} for of_rank in large]
    assert sent[-1] == target
    assert group.state(0)["guard_level"] == 0


def test_the_level_of_the_guard_is_part_of_the_state() -> None:
    options: dict[str, Any] = {**SPARSE, "guard": "adapt", "guard_ratio": 20}
    first, second = (GivenGradients(one_matrix(), 2, **options) for _ in range(2))
    for _ in range(110):
        first.average(same_gradients())
    for rank, state in enumerate(second.simulation.states):
        state.load_state_dict(first.state(rank))
    assert second.wire_bytes(same_gradients()) == first.wire_bytes(same_gradients())
    assert second.state(0)["guard_level"] > 0


def test_gradients_that_are_not_finite_decide_nothing() -> None:
    guard = ResidualGuard("adapt", 10.0)
    for squares in ([torch.nan, 1.0], [1e9, torch.inf], [1e9, 0.0]):
        guard.judge(torch.tensor(squares))
    assert guard.level == 0
    guard.judge(torch.tensor([1e9, 1.0]))
    assert guard.level == 1


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        ("topk:0.001", ["topk:0.004", "topk:0.016", "topk:0.064"]),
        ("sign:seed=2", ["int2:seed=2", "int4", "int8"]),
        ("int4", ["int8", "int8", "int8"]),
        ("fp32", ["fp32", "fp32", "fp32"]),
    ],
)
def test_each_level_sends_more(codec: str, expected: list[str]) -> None:
    guard = ResidualGuard("adapt", 10.0)
    for name in expected:
        guard.level += 1
        assert str(guard.codec_at_level(fastcomm.codec(codec))) == name


def adapt_on_real_ranks() -> int:
    model = DistributedDataParallel(mlp())
    options: dict[str, Any] = {**SPARSE, "guard": "adapt", "guard_ratio": 1.0}
    state = fastcomm.register(model, **options)
    for _ in range(104):  # the ranks' gradients differ, and so do their ratios
        backward(model, dist.get_rank())
    level: int = state.state_dict()["guard_level"]
    return level


def test_real_ranks_adapt_together() -> None:
    level, other_level = ranks.run(2, adapt_on_real_ranks)
    assert level == other_level > 0


def join_while_adapting() -> int:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, **SPARSE, guard="adapt", guard_ratio=1.0)
    with model.join():
        for step in range(30 if dist.get_rank() else 104):
            backward(model, step)
    level: int = state.state_dict()["guard_level"]
    return level


def test_rank_without_data_decides_with_the_others() -> None:
    level, other_level = ranks.run(2, join_while_adapting)
    assert level == other_level > 0


def test_flush_at_a_denser_level_delivers_everything() -> None:
    group = GivenGradients(one_matrix(), 2, **SPARSE, guard="adapt", guard_ratio=20)
    for _ in range(110):
        group.average(same_gradients())
    assert group.state(0)["guard_level"] > 0
    held = group.residual(0, "weight").double() + group.residual(1, "weight").double()
    group.simulation.flush()
    zeros = [{"weight": torch.zeros(64, 64)}] * 2
    delivered = 2 * group.average(zeros)["weight"].flatten().double()
    torch.testing.assert_close(delivered, held, rtol=1e-5, atol=1e-6)
    assert not group.residual(0, "weight").any()


@pytest.mark.parametrize("steps", [50, 51])  # a watched step's norms are not, or just exchanged
def test_a_decision_under_way_is_part_of_the_state(steps: int) -> None:
    options: dict[str, Any] = {**SPARSE, "guard": "adapt", "guard_ratio": 10}
    first, second = (GivenGradients(one_matrix(), 2, **options) for _ in range(2))
    for _ in range(steps):
        first.average(same_gradients())
    second.simulation.load_state_dicts(first.simulation.state_dicts())
    for group in (first, second):
        for _ in range(3):
            group.average(same_gradients())
    assert second.state(0)["guard_level"] == first.state(0)["guard_level"] > 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"guard": "loud"}, "unknown guard 'loud'"),
        ({"guard_ratio": 0.0}, "guard_ratio 0"),
        ({"guard": "adapt", "error_feedback": False}, "about residuals"),
    ],
)
def test_settings_that_cannot_work_are_named(options: dict[str, Any], what: str) -> None:
    with pytest.raises(fastcomm.ArgumentError, match=what):
        fastcomm.Simulation(one_matrix(), 2, "topk:0.01", **options)
