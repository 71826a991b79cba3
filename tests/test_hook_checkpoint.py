"""Saving and restoring the hook's state: nothing is lost, whoever loads it."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from ledger import digest
from training import backward, conserving_step, loss_of, mlp, register_recorded, residuals


def train(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, steps: range
) -> list[str]:
    """Return the hash of all parameters after each step."""
    digests = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        digests.append(digest(torch.cat([p.detach().flatten() for p in model.parameters()])))
    return digests


def stop_and_resume(codec: str) -> None:
    def start() -> tuple[DistributedDataParallel, fastcomm.HookState, torch.optim.Optimizer]:
        # With find_unused_parameters DDP never rebuilds its buckets: the fresh model has the same
        # blocks as the old one, so that equal residuals must give equal bits.
        model = DistributedDataParallel(mlp(), find_unused_parameters=True)
        state = fastcomm.register(model, codec, warmup_steps=6)
        return model, state, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    model, state, optimizer = start()
    train(model, optimizer, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), state.state_dict()))
    expected = train(model, optimizer, range(4, 9))

    model, state, optimizer = start()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    state.load_state_dict(saved[2])
    assert train(model, optimizer, range(4, 9)) == expected
    assert state.state_dict()["step"] == 9
    assert state.stats.steps == 5  # what this state synchronized itself


@pytest.mark.parametrize("codec", ["int8", "sign", "topk:0.05"])
def test_resumed_training_is_bit_identical_to_training_that_went_on(codec: str) -> None:
    ranks.run(2, stop_and_resume, codec)


def load_before_rebuild() -> None:
    model = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1)
    state = register_recorded(model, "int4").state
    for step in range(3):
        backward(model, step)
    saved = state.state_dict()
    kept = {name: r.clone() for name, r in saved["residuals"].items()}
    backward(model, 3)
    assert all(torch.equal(kept[n], r) for n, r in saved["residuals"].items()), "not a snapshot"

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
    for name, parameter in model.module.named_parameters():
        total = held.get(name, torch.zeros(parameter.numel())).double()
        dist.all_reduce(total)
        saved = torch.stack([s["residuals"][name].double() for s in states]).sum(dim=0)
        torch.testing.assert_close(total, saved, rtol=1e-6, atol=1e-12)
        assert saved.any() == (name in ("0.weight", "2.weight")), "nothing was saved"
    # What was loaded is delivered by the next steps, or still held.
    for step in range(2):
        assert conserving_step(model, state, step) <= 1e-6


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_states_of_two_ranks_are_conserved_by_another_number_of_ranks(num_ranks: int) -> None:
    ranks.run(num_ranks, load_states, ranks.run(2, save_states))


def test_state_of_one_rank_is_conserved_by_two() -> None:
    one = {**ranks.run(2, save_states)[0], "world_size": 1}
    ranks.run(2, load_states, [one])


def load_single_state(state_dict: dict[str, Any]) -> str:
    state = fastcomm.register(DistributedDataParallel(mlp()), "int4")
    with pytest.raises(fastcomm.ArgumentError) as caught:
        state.load_state_dict(state_dict)
    return str(caught.value)


def test_single_state_of_another_world_size_is_refused_with_the_way_to_load_it() -> None:
    (message,) = ranks.run(1, load_single_state, ranks.run(2, save_states)[0])
    assert "saved by 2 ranks, now there are 1" in message
    assert "list of the states of all ranks" in message


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
