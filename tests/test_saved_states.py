"""States that were damaged, mixed up or edited are refused before anything has changed."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastcomm
from given_gradients import GivenGradients, random_gradients

State = dict[str, Any]
NUM_RANKS = 2
OPTIONS: dict[str, Any] = {"warmup_steps": 0, "momentum": 0.9}


def two_layers(width: int = 40) -> nn.Sequential:
    return nn.Sequential(nn.Linear(30, width), nn.Linear(width, 20))


def started(model: nn.Module | None = None) -> GivenGradients:
    return GivenGradients(model or two_layers(), NUM_RANKS, "topk:0.1", **OPTIONS)


@functools.cache
def saved() -> list[State]:
    group = started()
    for seed in range(3):
        group.average(random_gradients(group.model, NUM_RANKS, seed))
    return group.simulation.state_dicts()


def edited(**entries: Any) -> State:
    return {**saved()[1], **entries}


def without(entry: str) -> State:
    return {key: value for key, value in saved()[1].items() if key != entry}


def with_element(kind: str, value: float) -> State:
    state = copy.deepcopy(saved()[1])
    state[kind]["0.weight"][3, 4] = value
    return state


# What rank 1 is given, and what the error names.
DAMAGED: dict[str, tuple[Callable[[], Any], str]] = {
    "a NaN": (lambda: with_element("residuals", torch.nan), "residuals of '0.weight'"),
    "an infinity": (lambda: with_element("residuals", torch.inf), "residuals of '0.weight'"),
    "a velocity": (lambda: with_element("velocities", torch.nan), "velocities of '0.weight'"),
    "another value": (lambda: with_element("residuals", 1.5), "checksum"),
    "no step": (lambda: without("step"), "no 'step'"),
    "no residuals": (lambda: without("residuals"), "no 'residuals'"),
    "no world size": (lambda: without("world_size"), "no 'world_size'"),
    "a negative step": (lambda: edited(step=-1), "'step'"),
    "a step in words": (lambda: edited(step="7"), "'step'"),
    "a scale": (lambda: edited(grad_scale=torch.nan), "'grad_scale'"),
    "a huge level": (lambda: edited(guard_level=1 << 40), "'guard_level'"),
    "guard sums": (lambda: edited(guard_sums=["a"]), "'guard_sums'"),
    "rates": (lambda: edited(rates=[0.1]), "'rates'"),
    "a bucket twice": (lambda: edited(buckets=[["0.weight", "0.weight"]]), "'buckets'"),
    "buckets of numbers": (lambda: edited(buckets=[[1]]), "'buckets'"),
    "a list as a residual": (
        lambda: edited(residuals={"0.weight": [1.0]}),
        "residuals of '0.weight'",
    ),
    "no states": (list, "without any"),
    "None": (lambda: None, "must be a dict"),
    "a model's state": (lambda: dict(two_layers().named_parameters()), "no 'step'"),
    "one rank twice": (lambda: [saved()[0], saved()[0]], "rank 0 is in the list 2 times"),
    "different steps": (lambda: [saved()[0], {**saved()[1], "step": 9}], "different steps (3, 9)"),
    "one of two": (lambda: [saved()[0]], "2 ranks saved a state, here are 1"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_state_is_refused_and_changes_nothing(what: str) -> None:
    make, named = DAMAGED[what]
    group = started()
    group.average(random_gradients(group.model, NUM_RANKS, seed=5))
    before = group.simulation.state_dicts()
    with pytest.raises(fastcomm.ArgumentError) as caught:
        group.simulation.states[1].load_state_dict(make())
    assert named in str(caught.value)
    after = group.simulation.state_dicts()
    assert [state["checksum"] for state in after] == [state["checksum"] for state in before]
    assert [state["step"] for state in after] == [1, 1]
    group.average(random_gradients(group.model, NUM_RANKS, seed=6))


def test_states_in_any_order_go_to_whom_they_belong() -> None:
    group = started()
    for rank, state in enumerate(group.simulation.states):
        state.load_state_dict(list(reversed(saved())))
        found = state.state_dict()["residuals"]
        assert all(torch.equal(found[n], r) for n, r in saved()[rank]["residuals"].items())


def test_what_has_not_changed_has_the_same_checksum() -> None:
    group = started()
    group.simulation.load_state_dicts(saved())
    assert [s["checksum"] for s in group.simulation.state_dicts()] == [
        s["checksum"] for s in saved()
    ]


# --- names and shapes -----------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Has a module under the name that torch.compile gives it."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        setattr(self, name, module)


@pytest.mark.parametrize("name", ["_orig_mod", "module", "_checkpoint_wrapped_module"])
def test_wrappers_do_not_change_names(name: str) -> None:
    group = started(Wrapped(two_layers(), name))
    group.simulation.load_state_dicts(saved())
    prefix = "module." if name == "module" else ""
    for state, given in zip(group.simulation.state_dicts(), saved(), strict=True):
        assert state["residuals"].keys() == {prefix + n for n in given["residuals"]}
    options = {"warmup_steps": 0, "policy": {f"{prefix}0.*": "int4", f"{prefix}1.*": "int8"}}
    GivenGradients(Wrapped(two_layers(), name), 1, "topk:0.1", **options)  # else it raises


def convolution(memory_format: torch.memory_format) -> nn.Module:
    return nn.Conv2d(8, 16, 3, bias=False).to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("before", FORMATS)
@pytest.mark.parametrize("after", FORMATS)
def test_residuals_reach_the_same_elements_in_another_memory_format(
    before: torch.memory_format, after: torch.memory_format
) -> None:
    group = GivenGradients(convolution(before), 1, "fp32")
    given = torch.randn(16, 8, 3, 3)
    state = group.state(0)
    state["residuals"] = {"weight": given}
    del state["checksum"]
    group.simulation.load_state_dicts([state])
    group.average([{"weight": torch.zeros_like(given)}])  # lays it out, and delivers it
    other = GivenGradients(convolution(after), 1, "fp32")
    group.simulation.load_state_dicts([state])
    other.simulation.load_state_dicts(group.simulation.state_dicts())
    delivered = other.average([{"weight": torch.zeros_like(given)}])["weight"]
    assert torch.equal(delivered, given)


def test_a_flat_residual_of_an_older_state_is_loaded() -> None:
    flat = [
        {**state, "residuals": {n: r.reshape(-1) for n, r in state["residuals"].items()}}
        for state in saved()
    ]
    group = started()
    group.simulation.load_state_dicts(flat)
    group.average([{n: torch.zeros(p.shape) for n, p in group.model.named_parameters()}] * 2)


# --- one state, one model; many optimizers --------------------------------------------------------


def test_a_state_is_of_one_model() -> None:
    group = started()
    with pytest.raises(fastcomm.ArgumentError, match="make a HookState for each"):
        group.simulation.states[0].attach(two_layers())


def test_learning_rates_of_several_optimizers_are_followed() -> None:
    model = two_layers()
    group = GivenGradients(model, 1, "topk:0.1", warmup_steps=0)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    for optimizer in optimizers:
        group.simulation.follow_learning_rate(optimizer)
        group.simulation.follow_learning_rate(optimizer)  # once more changes nothing
    overlapping = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(fastcomm.ArgumentError, match="some of the same parameters"):
        group.simulation.follow_learning_rate(overlapping)


def total(group: GivenGradients, name: str) -> torch.Tensor:
    """Return the sum of all ranks' residuals of a parameter."""
    return torch.stack([s["residuals"][name] for s in group.simulation.state_dicts()]).sum(0)


@pytest.mark.parametrize("followed", [(0,), (1,), (0, 1)])
def test_each_optimizer_rescales_its_own_residuals(followed: tuple[int, ...]) -> None:
    model = two_layers()
    group = GivenGradients(model, 2, "topk:0.1", warmup_steps=0, min_compress_elements=0)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model]
    for index in followed:
        group.simulation.follow_learning_rate(optimizers[index])
    group.average(random_gradients(model, 2, seed=0))
    for optimizer, rate in zip(optimizers, (0.05, 0.025), strict=True):
        optimizer.param_groups[0]["lr"] = rate
    zeros = [{n: torch.zeros(p.shape) for n, p in model.named_parameters()}] * 2
    total_before = [
        sum(s["residuals"][f"{i}.weight"] for s in group.simulation.state_dicts()) for i in (0, 1)
    ]
    delivered = group.average(zeros)
    for layer, factor in ((0, 2.0), (1, 4.0)):
        expected = factor if layer in followed else 1.0
        found = 2 * delivered[f"{layer}.weight"] + total(group, f"{layer}.weight")
        torch.testing.assert_close(found, expected * total_before[layer])
        assert total_before[layer].any()


# --- defaults of the program ----------------------------------------------------------------------


@pytest.mark.parametrize("change", ["dtype", "device"])
def test_defaults_of_the_program_do_not_matter(change: str) -> None:
    of_guard = {"guard_sums": [4.0, 1.0], "guard_squares": [[1.0, 2.0]]}
    states = [{**state, **of_guard} for state in saved()]
    restore: Callable[[], None]
    if change == "dtype":
        torch.set_default_dtype(torch.float64)
        restore = functools.partial(torch.set_default_dtype, torch.float32)
    else:
        torch.set_default_device("meta")
        restore = functools.partial(torch.set_default_device, None)
    try:
        with torch.device("cpu"):
            model = two_layers().float()
            gradients = [
                {n: torch.ones(p.shape, dtype=torch.float32) for n, p in model.named_parameters()}
            ] * 2
        options = {**OPTIONS, "guard": "adapt"}
        group = GivenGradients(model, NUM_RANKS, "topk:0.1", **options)
        group.simulation.load_state_dicts(states)
        for _ in range(3):
            found = group.average(gradients)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    finally:
        restore()
