"""The hook's state in torch.distributed.checkpoint, beside the model and the optimizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from test_hook_resume import Run, start, train, wide
from training import backward, conserving_step, mlp, residuals

dcp: Any = checkpoint  # which does not export to type checkers what it documents
OPTIONS: list[dict[str, Any]] = [
    {"codec": "int4"},
    {"codec": "topk:0.05", "momentum": 0.9, "guard": "adapt"},
]


def save(run: Run, folder: str) -> None:
    model, recorder, optimizer = run
    of_model, of_optimizer = get_state_dict(model, optimizer)
    of_hook = fastcomm.sharded_state_dict(recorder.state)
    dcp.save(
        {"model": of_model, "optimizer": of_optimizer, "fastcomm": of_hook}, checkpoint_id=folder
    )


def load(run: Run, folder: str) -> None:
    model, recorder, optimizer = run
    of_model, of_optimizer = get_state_dict(model, optimizer)
    dcp.load({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)
    fastcomm.load_sharded_state_dict(recorder.state, checkpoint_id=folder)


def stop(folder: str, options: dict[str, Any]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Return the hashes of the steps after the checkpoint, and the residuals in it."""
    run = start(wide(), {}, options)
    train(run, range(4))
    save(run, folder)
    held = residuals(run[1].state)
    return train(run, range(4, 7)), held


def resume(folder: str, options: dict[str, Any]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Return the hashes of the steps after the checkpoint, and the residuals found in it."""
    run = start(wide(), {}, options)
    load(run, folder)
    state = run[1].state
    held = residuals(state)
    assert state.state_dict()["step"] == 4
    digests = train(run, range(4, 7))
    if "momentum" not in options:  # which adds velocities, not gradients
        assert conserving_step(run[0], state, 7) <= 1e-6
    return digests, held


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_checkpoint_resumes_with_the_bits_of_training_that_went_on(
    options: dict[str, Any], tmp_path: Path
) -> None:
    before = ranks.run(2, stop, str(tmp_path), options)
    after = ranks.run(2, resume, str(tmp_path), options)
    for (expected, held), (found, loaded) in zip(before, after, strict=True):
        assert found == expected
        assert all(torch.equal(loaded[name], residual) for name, residual in held.items())
    (_, first), (_, second) = before
    assert not torch.equal(first["0.weight"], second["0.weight"]), "equal ranks: no test"


@pytest.mark.parametrize(("before", "after"), [(2, 3), (2, 1), (3, 2)])
def test_checkpoint_of_other_ranks_loses_no_residual(
    before: int, after: int, tmp_path: Path
) -> None:
    saved = [held for _, held in ranks.run(before, stop, str(tmp_path), OPTIONS[0])]
    for rank, (_, held) in enumerate(ranks.run(after, resume, str(tmp_path), OPTIONS[0])):
        taken = saved[rank::after]
        assert (len(held) > 0) == (len(taken) > 0)
        for name, residual in held.items():
            expected = sum((of_rank[name] for of_rank in taken[1:]), start=taken[0][name])
            assert torch.equal(residual, expected)


# --- where it is in a checkpoint --------------------------------------------------------------


def save_elsewhere(folder: str) -> list[str]:
    """Return the messages of what cannot be loaded."""
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int4")
    backward(model, 0)
    held = residuals(state)
    dcp.save({"hooks": {"left": fastcomm.sharded_state_dict(state)}}, checkpoint_id=folder)
    fresh = fastcomm.register(DistributedDataParallel(mlp()), "int4")
    messages = []
    for arguments in ({"checkpoint_id": folder}, {}):
        with pytest.raises(fastcomm.ArgumentError) as caught:
            fastcomm.load_sharded_state_dict(fresh, **arguments)
        messages.append(str(caught.value))
    reader = dcp.FileSystemReader(folder)
    fastcomm.load_sharded_state_dict(fresh, storage_reader=reader, key="hooks.left")
    found = residuals(fresh)
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], held[name]) for name in held)
    return messages


def test_state_is_found_under_the_key_it_was_saved_under(tmp_path: Path) -> None:
    for other_key, nowhere in ranks.run(2, save_elsewhere, str(tmp_path)):
        assert "states of the ranks [] under the key 'fastcomm'" in other_key
        assert "pass key=" in other_key
        assert "checkpoint_id and storage_reader are None" in nowhere


def save_on_first_rank_only(folder: str) -> str:
    state = fastcomm.register(DistributedDataParallel(mlp()), "int4")
    shard = fastcomm.sharded_state_dict(state) if dist.get_rank() == 0 else {}
    dcp.save({"fastcomm": shard}, checkpoint_id=folder)
    with pytest.raises(fastcomm.ArgumentError) as caught:
        fastcomm.load_sharded_state_dict(state, checkpoint_id=folder)
    return str(caught.value)


def test_checkpoint_without_the_states_of_some_ranks_is_refused(tmp_path: Path) -> None:
    for message in ranks.run(2, save_on_first_rank_only, str(tmp_path)):
        assert "2 ranks saved a state, here are 1; residuals of the others would be lost" in message


def save_as_stateful(folder: str) -> str:
    """DCP would take the state itself, and save one residual of each name."""
    model = DistributedDataParallel(mlp())
    state: Any = fastcomm.register(model, "int4")
    backward(model, 0)
    dcp.save({"fastcomm": state}, checkpoint_id=folder)
    fresh = fastcomm.register(DistributedDataParallel(mlp()), "int4")
    try:
        dcp.load({"fastcomm": fresh}, checkpoint_id=folder)
    except fastcomm.ArgumentError as error:
        return str(error)
    return ""


def test_state_that_dcp_saved_without_ranks_is_refused(tmp_path: Path) -> None:
    messages = ranks.run(2, save_as_stateful, str(tmp_path))
    for message in messages:  # also of the rank that was saved: a new state has no residuals yet
        assert "use fastcomm.sharded_state_dict" in message
