"""What register() takes for a model, and what it says of everything else."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import fastcomm
import ranks
from training import backward, gradients, loss_of, mlp


def caught(register: Callable[[], object]) -> str:
    """Return the message of the ArgumentError that a call raises."""
    with pytest.raises(fastcomm.ArgumentError) as error:
        register()
    return str(error.value)


# --- models in wrappers -----------------------------------------------------------------------


class Wrapper(nn.Module):
    """Holds a DDP model, and the module in it, as Fabric's does."""

    def __init__(self, ddp_model: DistributedDataParallel) -> None:
        super().__init__()
        self._forward_module = ddp_model
        self._original_module = ddp_model.module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the DDP model's outputs."""
        outputs: torch.Tensor = self._forward_module(inputs)
        return outputs


def compiled(model: nn.Module) -> nn.Module:
    """Return a compiled model, without the minutes that generating code for it would take."""
    return cast(nn.Module, torch.compile(model, backend="eager"))


def compiled_ddp() -> nn.Module:
    return compiled(DistributedDataParallel(mlp()))


def ddp_of_compiled() -> nn.Module:
    return DistributedDataParallel(compiled(mlp()))


def ddp_compiled_in_place() -> nn.Module:
    model = DistributedDataParallel(mlp())
    model.compile(backend="eager")
    return model


def wrapped_ddp() -> nn.Module:
    return Wrapper(DistributedDataParallel(mlp()))


def compiled_wrapper() -> nn.Module:
    return compiled(wrapped_ddp())


def replicated() -> nn.Module:
    return replicate(mlp())


def replicated_in_a_module() -> nn.Module:
    return nn.Sequential(replicate(mlp()), nn.Identity())


WRAPPERS = [
    compiled_ddp,
    ddp_of_compiled,
    ddp_compiled_in_place,
    wrapped_ddp,
    compiled_wrapper,
    replicated,
    replicated_in_a_module,
]


def sends_few_bytes_and_the_same_gradients(make: Callable[[], nn.Module]) -> None:
    plain, model = DistributedDataParallel(mlp()), make()
    state = fastcomm.register(model, "int4")
    for step in range(3):
        expected = backward(plain, step)
        model.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(found) == len(expected)
        for one, other in zip(found, expected.values(), strict=True):
            # Of another step, or of one rank alone, they are not as close by far.
            assert (one - other).norm() < 0.3 * other.norm()
    assert state.stats.steps == 3
    assert state.stats.last_step_ratio > 4
    names = state.state_dict()["residuals"].keys()
    assert "2.weight" in {name.removeprefix("_orig_mod.") for name in names}


@pytest.mark.parametrize("make", WRAPPERS)
def test_the_ddp_model_in_a_wrapper_is_found(make: Callable[[], nn.Module]) -> None:
    ranks.run(2, sends_few_bytes_and_the_same_gradients, make)


def frozen_under_replicate() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    replicate(model, find_unused_parameters=True)
    state = fastcomm.register(model, "int8", max_norm=1.0)
    loss_of(model, 0).backward()  # type: ignore[no-untyped-call]
    assert sorted(gradients(model)) == ["2.bias", "2.weight", "4.bias", "4.weight"]
    assert state.stats.steps == 1


def test_replicate_knows_which_parameters_are_synchronized() -> None:
    ranks.run(2, frozen_under_replicate)


def average_of_the_weights() -> None:
    model = DistributedDataParallel(mlp())
    fastcomm.register(model, "int8")
    averages = [AveragedModel(model.module)]
    with pytest.warns(UserWarning, match="hook of a DDP model is not copied"):
        averages.append(AveragedModel(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        for average in averages:
            average.update_parameters(model.module if average is averages[0] else model)
    for average in averages:
        flat = torch.cat([p.detach().flatten() for p in average.parameters()])
        from_rank_0 = flat.clone()
        dist.broadcast(from_rank_0, 0)
        assert torch.equal(flat, from_rank_0)


def test_averages_of_the_weights_are_the_same_on_all_ranks() -> None:
    ranks.run(2, average_of_the_weights)


# --- what has no place for the hook ---------------------------------------------------------------


def two_ddp_models() -> nn.Module:
    return nn.ModuleDict({name: DistributedDataParallel(mlp()) for name in ("left", "right")})


def refusals() -> dict[str, str]:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    models: dict[str, Any] = {
        "bare": mlp(),
        "no model": "model",
        "optimizer": torch.optim.SGD(mlp().parameters()),
        "two": two_ddp_models(),
        "DataParallel": nn.DataParallel(mlp()),
        "FSDP1": FullyShardedDataParallel(mlp(), device_id=torch.device("cpu")),
        "FSDP2": fully_shard(mlp(), mesh=mesh),
        "compiled FSDP2": compiled(cast(nn.Module, fully_shard(mlp(), mesh=mesh))),
    }
    register = functools.partial(functools.partial, fastcomm.register)
    return {what: caught(register(model)) for what, model in models.items()}


def test_what_holds_no_ddp_model_is_refused_with_the_sentence_that_fits() -> None:
    for messages in ranks.run(2, refusals):
        assert "fastcomm.register(DistributedDataParallel(module))" in messages["bare"]
        assert "got str" in messages["no model"]
        assert "got SGD" in messages["optimizer"]
        assert "2 DistributedDataParallel models (left, right)" in messages["two"]
        assert "start one process for each device" in messages["DataParallel"]
        assert "FSDP1" in messages["FSDP1"]
        assert "fully_shard (FSDP2)" in messages["FSDP2"]
        assert "fully_shard (FSDP2)" in messages["compiled FSDP2"]
        for sharded in ("FSDP1", "FSDP2", "compiled FSDP2"):
            assert "wrap it" not in messages[sharded]


# --- a state before its process group ---------------------------------------------------------


def registered_late(rank: int, num_ranks: int, store: str, attached: bool) -> None:
    # As Lightning does it, which makes the state when it is configured.
    state = fastcomm.HookState("int4")
    assert "no process group yet" in repr(state)
    with pytest.raises(fastcomm.Error, match="init_process_group"):
        state.connect()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    model = DistributedDataParallel(mlp())
    if attached:
        state.attach(model)
    model.register_comm_hook(state, fastcomm.compress_hook)
    for step in range(3):
        backward(model, step)
    assert state.process_group == dist.group.WORLD
    assert state.stats.last_step_ratio > 4
    assert f"rank {rank} of {num_ranks}" in repr(state)
    dist.destroy_process_group()


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "not attached"])
def test_a_state_may_be_made_before_the_process_group(tmp_path: Path, attached: bool) -> None:
    arguments = (2, str(tmp_path / "store"), attached)
    start_processes(registered_late, arguments, nprocs=2)  # type: ignore[no-untyped-call]


def group_of_the_model() -> None:
    groups = [dist.new_group(), dist.new_group()]
    model = DistributedDataParallel(mlp(), process_group=groups[0])
    state = fastcomm.HookState("int8")
    state.attach(model)
    assert state.process_group == groups[0]
    other = fastcomm.HookState("int8", process_group=groups[1])
    assert "not the one of the DDP model" in caught(lambda: other.attach(model))
    register = functools.partial(fastcomm.register, model, process_group=groups[1])
    assert "not the one of the DDP model" in caught(register)


def test_a_state_without_a_group_takes_the_one_of_its_model() -> None:
    ranks.run(2, group_of_the_model)
