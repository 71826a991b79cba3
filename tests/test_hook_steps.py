"""One step is one outermost backward pass, however DDP calls the hook."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import fastcomm
import ranks
from training import gradients, residuals


class Checkpointed(nn.Module):
    """Layers whose activations are computed again, in backward passes inside the backward pass."""

    def __init__(self, is_reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.is_reentrant = is_reentrant
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return activations."""
        for layer in self.layers:
            inputs = checkpoint(layer, inputs, use_reentrant=self.is_reentrant)
        return inputs


def backward(model: nn.Module, step: int) -> dict[str, torch.Tensor]:
    model.zero_grad()
    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
    inputs = torch.randn(8, 64, generator=generator).requires_grad_()
    model(inputs).square().mean().backward()
    return gradients(model)


def count_steps(is_reentrant: bool, static_graph: bool, attached: bool) -> None:
    module = Checkpointed(is_reentrant)
    model = DistributedDataParallel(module, static_graph=static_graph, bucket_cap_mb=0.02)
    state = fastcomm.HookState("topk:0.05", warmup_steps=4)
    if attached:
        state.attach(model)
    model.register_comm_hook(state, fastcomm.compress_hook)
    for step in range(6):
        backward(model, step)
        assert state.stats.steps == step + 1
    state.attach(model)
    saved = state.state_dict()
    assert saved["step"] == 6
    assert sorted(n for bucket in saved["buckets"] for n in bucket) == sorted(saved["residuals"])
    assert len(saved["residuals"]) == 10
    assert residuals(state)["layers.0.0.weight"].any()
    state.flush()
    backward(model, 6)
    assert not any(residual.any() for residual in residuals(state).values())


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "not attached"])
@pytest.mark.parametrize(
    ("is_reentrant", "static_graph"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_backward_passes_of_activation_checkpointing_are_parts_of_a_step(
    is_reentrant: bool, static_graph: bool, attached: bool
) -> None:
    ranks.run(2, count_steps, is_reentrant, static_graph, attached)


class GivesUp(torch.autograd.Function):
    """Raises in the backward pass, if it is told to."""

    gives_up = False

    @staticmethod
    def forward(_: Any, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs."""
        return inputs.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient."""
        if GivesUp.gives_up:
            raise RuntimeError("no more")
        return gradient


class Interrupted(nn.Module):
    """Three layers, after the first of which the backward pass may be given up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

    def forward(self, inputs: torch.Tensor, leaves_out: bool = False) -> torch.Tensor:
        """Return activations."""
        inputs = self.layers[0](inputs)
        inputs = GivesUp.apply(inputs)  # type: ignore[no-untyped-call]
        if not leaves_out:
            inputs = self.layers[1](inputs)
        return self.layers[2](inputs)  # type: ignore[no-any-return]


def give_up_and_go_on() -> None:
    # A new DDP model after the failure, as PyTorch asks for, and the same state.
    state = fastcomm.HookState("topk:0.05", warmup_steps=0)
    module = Interrupted()

    def start() -> DistributedDataParallel:
        model = DistributedDataParallel(module, bucket_cap_mb=0.02)
        state.attach(model)
        model.register_comm_hook(state, fastcomm.compress_hook)
        return model

    model = start()
    for step in range(3):
        backward(model, step)
    GivesUp.gives_up = True
    with pytest.raises(RuntimeError, match="no more"):
        backward(model, 3)
    GivesUp.gives_up = False
    model = start()
    for step in range(4, 7):
        backward(model, step)
        assert state.stats.steps == step + 1
    names = [name for bucket in state.state_dict()["buckets"] for name in bucket]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())


def test_a_backward_pass_that_was_given_up_is_a_step_of_its_own() -> None:
    ranks.run(2, give_up_and_go_on)


# --- accumulation with a synchronization in each backward pass ------------------------------------


def accumulate(options: dict[str, Any], in_place: bool) -> tuple[float, int]:
    """Return the largest relative error of what is delivered or held, and the number of steps."""
    module = Interrupted()
    plain = DistributedDataParallel(Interrupted())
    model = DistributedDataParallel(module, gradient_as_bucket_view=in_place)
    state = fastcomm.register(model, warmup_steps=0, **options)
    total = {name: torch.zeros(p.shape).double() for name, p in module.named_parameters()}
    delivered = {name: torch.zeros(p.shape).double() for name, p in module.named_parameters()}
    for step in range(4):
        for each, sums in ((plain, total), (model, delivered)):
            each.zero_grad()
            for micro_step in range(3):
                generator = torch.Generator().manual_seed(100 * step + micro_step + dist.get_rank())
                each(torch.randn(8, 64, generator=generator)).square().mean().backward()
            for name, gradient in gradients(each).items():
                sums[name] += gradient
    held = residuals(state)
    worst = 0.0
    for name, expected in total.items():
        left = held.get(name, torch.zeros(expected.numel())).double()
        dist.all_reduce(left)
        found = delivered[name].flatten() + left / dist.get_world_size()
        worst = max(worst, float((found - expected.flatten()).norm() / expected.norm()))
    return worst, state.stats.steps


@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "gradient_as_bucket_view"])
@pytest.mark.parametrize("codec", ["int4", "topk:0.05"])
def test_accumulation_without_no_sync_loses_nothing(codec: str, in_place: bool) -> None:
    for worst, steps in ranks.run(2, accumulate, {"codec": codec}, in_place):
        assert worst < 1e-5
        assert steps == 12


def sum_of_passes(options: dict[str, Any], num_passes: int, unused: bool) -> None:
    """Compare with SGD that has the momentum, or gets clipped gradients."""
    momentum, nesterov = options.get("momentum", 0.0), options.get("nesterov", False)
    max_norm = options.get("max_norm")
    plain, ours = Interrupted(), Interrupted()
    model = DistributedDataParallel(ours, find_unused_parameters=unused)
    fastcomm.register(model, "fp32", **options)
    reference = torch.optim.SGD(plain.parameters(), 0.1, momentum=momentum, nesterov=nesterov)
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    for step in range(4):
        reference.zero_grad()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        sums = [torch.zeros_like(p) for p in plain.parameters()]
        for micro_step in range(num_passes):
            loss_of_ranks = [loss_of_pass(plain, step, micro_step, r, unused) for r in range(2)]
            for loss in loss_of_ranks:
                found = torch.autograd.grad(loss, list(plain.parameters()), materialize_grads=True)
                factor = 1.0
                if max_norm is not None:
                    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in found]))
                    factor = min(1.0, max_norm * 2**0.5 / (float(norm) + 1e-6))
                for total, gradient in zip(sums, found, strict=True):
                    total += factor * gradient / 2
            loss_of_pass(model, step, micro_step, dist.get_rank(), unused).backward()  # type: ignore[no-untyped-call]
        for parameter, total in zip(plain.parameters(), sums, strict=True):
            parameter.grad = total
        reference.step()
        optimizer.step()
        for expected, parameter in zip(plain.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)
            of_rank_0 = parameter.detach().clone()
            dist.broadcast(of_rank_0, 0)
            assert torch.equal(parameter, of_rank_0)


def loss_of_pass(
    model: nn.Module, step: int, micro_step: int, rank: int, unused: bool
) -> torch.Tensor:
    """Return a loss; ``unused``: for which one rank leaves out a layer."""
    generator = torch.Generator().manual_seed(100 * step + 10 * micro_step + rank)
    outputs = model(torch.randn(8, 64, generator=generator), unused and rank == micro_step % 2)
    loss: torch.Tensor = outputs.square().mean()
    return loss


@pytest.mark.parametrize("unused", [False, True], ids=["all used", "not used on all ranks"])
@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"max_norm": 0.05}],
    ids=str,
)
def test_passes_of_one_step_of_the_optimizer_add_up(options: dict[str, Any], unused: bool) -> None:
    ranks.run(2, sum_of_passes, options, 3, unused)
