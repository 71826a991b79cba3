"""Data parallel times tensor parallel ranks, over a device_mesh of 2 x 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks

dcp: Any = checkpoint  # which does not export to type checkers what it documents
SIZE = 60  # matrices are no multiples of a block: blocks would straddle them
ORDERS = [("dp", "tp"), ("tp", "dp")]


class Net(nn.Module):
    """Two layers that are sharded, between two that are not."""

    def __init__(self, inner: int = 2 * SIZE) -> None:
        super().__init__()
        # Without biases, sharded matrices lie beside those that are not.
        self.before = nn.Linear(SIZE, SIZE, bias=False)
        self.up = nn.Linear(SIZE, inner)
        self.down = nn.Linear(inner, SIZE, bias=False)
        self.after = nn.Linear(SIZE, SIZE)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs of the size of the inputs."""
        hidden: torch.Tensor = self.down(torch.relu(self.up(self.before(inputs))))
        outputs: torch.Tensor = self.after(hidden)
        return outputs


def mesh_of(order: tuple[str, str] = ORDERS[0], num_shards: int = 2) -> DeviceMesh:
    sizes = {"tp": num_shards, "dp": dist.get_world_size() // num_shards}
    return init_device_mesh("cpu", (sizes[order[0]], sizes[order[1]]), mesh_dim_names=order)


def sharded(mesh: DeviceMesh, inner: int = 2 * SIZE) -> nn.Module:
    torch.manual_seed(0)
    plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    return parallelize_module(Net(inner), mesh["tp"], plan)


def ddp(mesh: DeviceMesh, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(sharded(mesh), device_mesh=mesh["dp"], **options)


def parameters_of(model: DistributedDataParallel) -> dict[str, nn.Parameter]:
    """Return the parameters by name, before the first step: the module then has no more of them."""
    return dict(model.module.named_parameters())


def backward(model: DistributedDataParallel, mesh: DeviceMesh, step: int) -> None:
    """Make the ranks of a tensor-parallel group share a batch."""
    torch.manual_seed(10 * step + mesh.get_local_rank("dp"))
    loss: torch.Tensor = model(torch.randn(8, SIZE)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]


# --- weights ----------------------------------------------------------------------------------


def train(codec: str, options: dict[str, Any], ddp_options: dict[str, Any]) -> list[str]:
    """Return the parameters that differ on the ranks of a tensor-parallel group."""
    mesh = mesh_of()
    model = ddp(mesh, **ddp_options)
    parameters = parameters_of(model)
    state = fastcomm.register(model, codec, **{"warmup_steps": 0, "policy": {}, **options})
    optimizer = torch.optim.SGD(parameters.values(), 0.1)
    for step in range(5):
        optimizer.zero_grad(set_to_none=False)
        backward(model, mesh, step)
        if "momentum" in options:
            backward(model, mesh, step + 100)
        optimizer.step()
        state.attach(model)  # once more is no harm
    assert state.stats.ratio > 1.5
    assert state.state_dict()["residuals"].keys() == parameters.keys()
    assert parameters["up.weight"].shape == (SIZE, SIZE), "not sharded: no test"
    differing = []
    for name, parameter in parameters.items():
        of_ranks = [torch.zeros_like(parameter.detach()) for _ in range(2)]
        dist.all_gather(of_ranks, parameter.detach(), group=mesh.get_group("tp"))
        if not torch.equal(*of_ranks):
            differing.append(name)
    return differing


@pytest.mark.parametrize(
    ("codec", "options", "ddp_options"),
    [
        ("int8", {}, {}),
        ("int4", {"momentum": 0.9}, {"gradient_as_bucket_view": True}),
        ("topk:0.05", {"policy": None}, {"bucket_cap_mb": 0.02}),
        ("sign", {"policy": {"before*": "int4", "*": "sign"}}, {"static_graph": True}),
    ],
    ids=str,
)
def test_parameters_that_all_ranks_hold_stay_equal(
    codec: str, options: dict[str, Any], ddp_options: dict[str, Any]
) -> None:
    sharded = {"up.weight", "up.bias", "down.weight"}
    for differing in ranks.run(4, train, codec, options, ddp_options):
        assert set(differing) == sharded


# --- checkpoints ------------------------------------------------------------------------------


Residuals = dict[str, torch.Tensor]


def gradients_of(
    model: DistributedDataParallel, parameters: dict[str, nn.Parameter], mesh: DeviceMesh
) -> Residuals:
    gradients = {}
    for step in range(3, 6):
        for parameter in parameters.values():
            parameter.grad = None
        backward(model, mesh, step)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            gradients[f"{step}: {name}"] = parameter.grad.clone()
    return gradients


def save(folder: str, order: tuple[str, str]) -> tuple[list[int], list[str], Residuals, Residuals]:
    """Return this rank's (tp, dp), what it has in the checkpoint, and the gradients after it."""
    mesh = mesh_of(order)
    model = ddp(mesh)
    parameters = parameters_of(model)
    state = fastcomm.register(model, "int4")
    for step in range(3):
        backward(model, mesh, step)
    entry = fastcomm.sharded_state_dict(state)
    dcp.save({"fastcomm": entry}, checkpoint_id=folder)
    names = [f"{shard}.{rank}" for shard, of_shard in entry.items() for rank in of_shard]
    place = [mesh.get_local_rank("tp"), mesh.get_local_rank("dp")]
    residuals = state.state_dict()["residuals"]
    return place, names, residuals, gradients_of(model, parameters, mesh)


def load(folder: str, order: tuple[str, str]) -> tuple[list[int], Residuals, Residuals]:
    mesh = mesh_of(order)
    model = ddp(mesh)
    parameters = parameters_of(model)
    state = fastcomm.register(model, "int4")
    fastcomm.load_sharded_state_dict(state, checkpoint_id=folder)
    place = [mesh.get_local_rank("tp"), mesh.get_local_rank("dp")]
    residuals = state.state_dict()["residuals"]
    return place, residuals, gradients_of(model, parameters, mesh)


def sums_by_shard(of_ranks: list[tuple[int, Residuals]]) -> dict[tuple[int, str], torch.Tensor]:
    sums: dict[tuple[int, str], torch.Tensor] = {}
    for shard, residuals in of_ranks:
        for name, residual in residuals.items():
            sums[shard, name] = sums.get((shard, name), torch.zeros(())) + residual
    return sums


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_checkpoint_gives_each_shard_its_own_residuals_back(
    order: tuple[str, str], tmp_path: Path
) -> None:
    saved = ranks.run(4, save, str(tmp_path), order)
    assert len({key for _, names, _, _ in saved for key in names}) == 4
    expected = sums_by_shard([(place[0], residuals) for place, _, residuals, _ in saved])
    assert not torch.equal(expected[0, "up.weight"], expected[1, "up.weight"]), "no test"
    loaded = ranks.run(4, load, str(tmp_path), order)
    for (place, _, residuals, gradients), (same_place, found, found_gradients) in zip(
        saved, loaded, strict=True
    ):
        assert same_place == place
        assert found.keys() == residuals.keys()
        assert all(torch.equal(found[name], residuals[name]) for name in residuals)
        assert all(torch.equal(found_gradients[name], gradients[name]) for name in gradients)
    by_fewer = ranks.run(2, load, str(tmp_path), order)
    sums = sums_by_shard([(place[0], residuals) for place, residuals, _ in by_fewer])
    assert sums.keys() == expected.keys()
    assert all(torch.equal(sums[key], expected[key]) for key in expected)


def load_wrongly(folder: str, states: list[dict[str, Any]]) -> list[str]:
    """Return what is said to a checkpoint of 2 shards, by 4 of them, and to other ranks' states."""
    mesh = mesh_of(num_shards=4)
    other = fastcomm.register(ddp(mesh), "int4")
    mesh = mesh_of()
    state = fastcomm.register(ddp(mesh), "int4")
    calls: list[Callable[[], None]] = [
        lambda: fastcomm.load_sharded_state_dict(other, checkpoint_id=folder),
        lambda: state.load_state_dict(states[dist.get_rank() ^ 1]),
        lambda: state.load_state_dict(states),
    ]
    messages = []
    for call in calls:
        with pytest.raises(fastcomm.ArgumentError) as caught:
            call()
        messages.append(str(caught.value))
    return messages


def state_of_rank(folder: str) -> dict[str, Any]:
    mesh = mesh_of()
    model = ddp(mesh)
    state = fastcomm.register(model, "int4")
    backward(model, mesh, 0)
    dcp.save({"fastcomm": fastcomm.sharded_state_dict(state)}, checkpoint_id=folder)
    return state.state_dict()


def test_states_of_other_shards_are_refused(tmp_path: Path) -> None:
    states = ranks.run(4, state_of_rank, str(tmp_path))
    for messages in ranks.run(4, load_wrongly, str(tmp_path), states):
        other_number, other_shard, all_shards = messages
        assert "of 2 process groups (of the shards 0, 1), this job has 4" in other_number
        assert "has another shard of the model; give each rank what it saved itself" in other_shard
        assert "of different shards of the model (0, 1); pass those of one" in all_shards


# --- what cannot work -------------------------------------------------------------------------


def refused() -> list[str]:
    mesh = mesh_of()
    model = ddp(mesh)
    late = ddp(mesh)
    backward(late, mesh, 0)
    uneven = DistributedDataParallel(sharded(mesh, inner=75), device_mesh=mesh["dp"])
    messages = []
    for call in (
        lambda: fastcomm.register(model, "int4", max_norm=1.0),
        lambda: fastcomm.register(model, "int4", guard="adapt"),
        lambda: fastcomm.register(uneven, "int4"),
        lambda: fastcomm.register(late, "int4"),
        lambda: fastcomm.HookState("int4", mesh.get_group("dp")).attach(sharded(mesh)),
    ):
        with pytest.raises(fastcomm.ArgumentError) as caught:
            call()
        messages.append(str(caught.value))
    fastcomm.register(model, "int4")  # nothing is left of what was refused
    return messages


def test_what_would_let_parameters_drift_apart_is_refused_with_the_fix() -> None:
    for messages in ranks.run(4, refused):
        max_norm, guard, uneven, late, early = messages
        assert "is sharded over 2 ranks; max_norm=1" in max_norm
        assert "leave max_norm out" in max_norm
        assert 'use guard="warn"' in guard
        assert "'up.weight' is a shard of one of shape (75, 60)" in uneven
        assert "pad the sharded dimension to a multiple of 2" in uneven
        assert "register or attach before that" in late
        assert "'up.weight' is a DTensor" in early
