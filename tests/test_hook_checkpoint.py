"""Saving and restoring the hook's state: nothing is lost, whoever loads it."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import backward, conserving_step, mlp, register_recorded, residuals


def load_before_rebuild() -> None:
    model = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1)
    state = register_recorded(model, "int4").state
    for step in range(3):
        backward(model, step)
    saved = state.state_dict()
    kept = {name: r.flatten() for name, r in saved["residuals"].items()}
    backward(model, 3)
    assert all(torch.equal(kept[n], r.flatten()) for n, r in saved["residuals"].items()), (
        "not a snapshot"
    )

    fresh = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1)
    recorder = register_recorded(fresh, "int4")
    recorder.state.load_state_dict(saved)
    held = residuals(recorder.state)
    assert held.keys() == kept.keys()
    assert all(torch.equal(held[name], kept[name]) for name in held), "lost before any bucket"
    # One bucket, then several, in another order.
    for step in range(4, 7):
        assert conserving_step(fresh, recorder.state, step) <= 1e-6
    assert len(recorder.steps[0]) < len(recorder.steps[1])


def test_loaded_residuals_survive_a_bucket_rebuild() -> None:
    ranks.run(2, load_before_rebuild)


def load_into_running_state() -> None:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int4")
    for step in range(3):
        backward(model, step)
    saved = state.state_dict()
    expected = backward(model, 3)
    backward(model, 4)
    state.load_state_dict(saved)
    again = backward(model, 3)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_state_may_be_loaded_in_the_middle_of_training() -> None:
    ranks.run(2, load_into_running_state)


# --- another world size -----------------------------------------------------------------------


def save_states() -> dict[str, Any]:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int4")
    for step in range(3):
        backward(model, step)
    return state.state_dict()


def load_states(states: list[dict[str, Any]]) -> None:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int4")
    state.load_state_dict(states)
    held = residuals(state)  # nothing, on a rank without a state to take over
    taken = states[dist.get_rank() :: dist.get_world_size()]
    for name, parameter in model.module.named_parameters():
        # Bit by bit what was saved, or the sum of two.
        expected = sum(s["residuals"][name].reshape(-1) for s in taken)
        assert not taken or torch.equal(held[name], expected)
        total = held.get(name, torch.zeros(parameter.numel())).double()
        dist.all_reduce(total)
        of_ranks = torch.stack([s["residuals"][name].reshape(-1).double() for s in states])
        saved, magnitude = of_ranks.sum(dim=0), of_ranks.abs().sum(dim=0)
        rounding = torch.finfo(torch.float32).eps / 2 if len(taken) > 1 else 1e-15
        assert ((total - saved).abs() <= rounding * magnitude).all()
        assert saved.any() == (name in ("0.weight", "2.weight")), "nothing was saved"
    # What was loaded is delivered by the next steps, or still held.
    for step in range(2):
        assert conserving_step(model, state, step) <= 1e-6


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (2, 4), (4, 2), (3, 5)], ids=str)
def test_states_are_conserved_by_another_number_of_ranks(before: int, after: int) -> None:
    ranks.run(after, load_states, ranks.run(before, save_states))


def test_state_of_one_rank_is_conserved_by_two() -> None:
    one = {**ranks.run(2, save_states)[0], "world_size": 1}
    ranks.run(2, load_states, [one])


def load_state_of_first_rank(state_dict: dict[str, Any]) -> str:
    state = fastcomm.register(DistributedDataParallel(mlp()), "int4")
    if dist.get_rank() == 0:
        state.load_state_dict(state_dict)
        return ""
    with pytest.raises(fastcomm.ArgumentError) as caught:
        state.load_state_dict(state_dict)
    return str(caught.value)


def test_state_of_one_rank_is_refused_by_the_others() -> None:
    _, message = ranks.run(2, load_state_of_first_rank, ranks.run(2, save_states)[0])
    assert "saved by rank 0, this is rank 1" in message
    assert "save one for each rank" in message


def load_single_state(state_dict: dict[str, Any]) -> str:
    state = fastcomm.register(DistributedDataParallel(mlp()), "int4")
    with pytest.raises(fastcomm.ArgumentError) as caught:
        state.load_state_dict(state_dict)
    return str(caught.value)


def test_single_state_of_another_world_size_is_refused_with_the_way_to_load_it() -> None:
    (message,) = ranks.run(1, load_single_state, ranks.run(2, save_states)[0])
    assert "saved by 2 ranks, now there are 1" in message
    assert "list of the states of all ranks" in message


# --- names ------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """Calls the wrapped model ``module``, as many wrappers do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.module(inputs)
        return logits


def prefixed(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {
        **state_dict,
        "buckets": [[f"module.{name}" for name in names] for names in state_dict["buckets"]],
        "residuals": {f"module.{name}": r for name, r in state_dict["residuals"].items()},
    }


def attach_by(model: DistributedDataParallel, attached: nn.Module) -> fastcomm.HookState:
    state = fastcomm.HookState("int4")
    state.attach(attached)
    model.register_comm_hook(state, fastcomm.compress_hook)
    return state


def resume_under_other_names() -> None:
    def start(wrapped: bool) -> DistributedDataParallel:
        return DistributedDataParallel(Wrapper(mlp()) if wrapped else mlp())

    model = start(wrapped=False)
    state = fastcomm.register(model, "int4")
    for step in range(3):
        backward(model, step)
    saved = state.state_dict()
    expected = list(backward(model, 3).values())
    for wrapped in (False, True):
        for by_module in (False, True):
            for given in (saved, prefixed(saved)):
                model = start(wrapped)
                state = attach_by(model, model.module if by_module else model)
                state.load_state_dict(given)
                state.load_state_dict(state.state_dict())  # its own is good, too
                found = list(backward(model, 3).values())
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_wrapped_models_resume_with_the_same_bits_under_any_prefix() -> None:
    ranks.run(2, resume_under_other_names)


# --- errors -----------------------------------------------------------------------------------


def without_names() -> tuple[str, str]:
    model = DistributedDataParallel(mlp())
    state = fastcomm.HookState("int4")
    model.register_comm_hook(state, fastcomm.compress_hook)
    backward(model, 0)
    with pytest.raises(fastcomm.ArgumentError) as saving:
        state.state_dict()
    named = fastcomm.register(DistributedDataParallel(mlp()), "int4")
    with pytest.raises(fastcomm.ArgumentError) as loading:
        state.load_state_dict(named.state_dict())
    state.attach(model)
    assert residuals(state).keys() == dict(mlp().named_parameters()).keys()
    return str(saving.value), str(loading.value)


def test_parameters_without_names_are_a_clear_error() -> None:
    for messages in ranks.run(1, without_names):
        for message in messages:
            assert "parameters have no names" in message
            assert "fastcomm.register(ddp_model)" in message
            assert "state.attach(ddp_model)" in message


def load_other_model() -> str:
    small, large = DistributedDataParallel(mlp(width=20)), DistributedDataParallel(mlp(width=21))
    states = [fastcomm.register(model, "int4") for model in (small, large)]
    for model in (small, large):
        backward(model, 0)
    with pytest.raises(fastcomm.ArgumentError) as caught:
        states[1].load_state_dict(states[0].state_dict())
    return str(caught.value)


def test_state_of_another_model_is_refused_by_the_parameter_that_differs() -> None:
    for message in ranks.run(2, load_other_model):
        assert "'0.weight' has 1200 elements" in message
        assert "1260" in message


def load_other_model_at_start() -> str:
    small, large = DistributedDataParallel(mlp(width=20)), DistributedDataParallel(mlp(width=21))
    small_state, large_state = (fastcomm.register(model, "int4") for model in (small, large))
    backward(small, 0)

    def load_and_use() -> None:
        large_state.load_state_dict(small_state.state_dict())
        backward(large, 0)

    with pytest.raises(fastcomm.ArgumentError) as caught:
        load_and_use()
    return str(caught.value)


def test_state_of_another_model_is_refused_before_the_first_step_too() -> None:
    for message in ranks.run(2, load_other_model_at_start):
        assert "'0.weight' has 1200 elements" in message
