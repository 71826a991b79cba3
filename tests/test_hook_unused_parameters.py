"""Parameters that no rank used in a step: DDP ignores what is delivered, and nothing is lost."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from ledger import conservation_error, digest
from promises import is_rotated
from test_hook_ddp_features import Branches
from training import batch, gradients, residuals

# Which ranks use the left branch (the others the right one) in each step: all, some, none.
LEFT_RANKS: list[set[int]] = [{0, 1, 2}, {0, 1, 2}, set(), set(), {0}, {0, 1, 2}, set(), {1}]


def branch_backward(model: nn.Module, step: int) -> None:
    inputs, labels = batch(step)
    logits = model(inputs, dist.get_rank() in LEFT_RANKS[step])
    nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]


def zero(model: nn.Module, mode: str) -> None:
    if mode != "accumulate":
        model.zero_grad(set_to_none=mode == "none")


def conserve(codec: str, mode: str, ddp_options: dict[str, Any]) -> float:
    """Return the worst violation of conservation; ``mode``: what is done with old gradients."""
    model = DistributedDataParallel(Branches(), find_unused_parameters=True, **ddp_options)
    state = fastcomm.register(model, codec, warmup_steps=0)
    num_ranks = dist.get_world_size()
    names = [name for name, _ in model.module.named_parameters()]
    zeros = {n: torch.zeros(p.numel()) for n, p in model.module.named_parameters()}

    def all_of(found: dict[str, torch.Tensor]) -> torch.Tensor:
        of_all = zeros | {name: tensor.flatten() for name, tensor in found.items()}
        return torch.cat([of_all[name] for name in names])

    worst = 0.0
    for step in range(len(LEFT_RANKS)):
        zero(model, mode)
        alone = copy.deepcopy(model.module)
        for parameter, mine in zip(model.parameters(), alone.parameters(), strict=True):
            mine.grad = None if parameter.grad is None else parameter.grad.clone()
        branch_backward(alone, step)
        given, before = all_of(gradients(alone)), all_of(residuals(state))
        branch_backward(model, step)
        delivered, after = all_of(gradients(model)), all_of(residuals(state))
        block = given.numel() if is_rotated(codec) else 1
        error = conservation_error(delivered.double() * num_ranks, given, before, after, block)
        worst = max(worst, error)
    held = residuals(state)
    assert held["left.weight"].any()
    assert held["right.weight"].any()
    return worst


@pytest.mark.parametrize("gradient_as_bucket_view", [False, True])
@pytest.mark.parametrize("mode", ["none", "zeros", "accumulate"])
def test_residuals_of_parameters_that_no_rank_uses_are_kept(
    mode: str, gradient_as_bucket_view: bool
) -> None:
    options = {"gradient_as_bucket_view": gradient_as_bucket_view}
    for codec, num_ranks in (("int4", 2), ("topk:0.05", 3), ("sign", 2)):
        assert max(ranks.run(num_ranks, conserve, codec, mode, options)) <= 1e-6


def keep_through_unused_step(by_register: bool, mode: str) -> str:
    """Return a hash of the residual of a parameter that was used, and then was not."""
    module = Branches()
    # In another order in memory, and so in its bucket, than by its indices.
    module.left.weight = nn.Parameter(module.left.weight.detach().t().contiguous().t())
    model = DistributedDataParallel(module, find_unused_parameters=True)
    state = fastcomm.HookState("int4")
    if by_register:
        state = fastcomm.register(model, "int4")
    else:
        model.register_comm_hook(state, fastcomm.compress_hook)
    for step in range(2):
        zero(model, mode)
        branch_backward(model, step)
    state.attach(module)
    before = residuals(state)["left.weight"]
    zero(model, mode)
    branch_backward(model, 2)
    gradient: Any = module.left.weight.grad
    assert gradient is None if mode == "none" else torch.equal(gradient, torch.zeros(80, 60))
    total = torch.stack([before, residuals(state)["left.weight"]])
    dist.all_reduce(total)
    assert before.any()
    torch.testing.assert_close(total[1], total[0], rtol=1e-5, atol=1e-7)
    return digest(before)


def test_residual_is_that_of_before_the_step() -> None:
    expected = ranks.run(2, keep_through_unused_step, True, "none")
    assert ranks.run(2, keep_through_unused_step, True, "zeros") == expected
    # Without the model: gradients that are None are enough to see.
    assert ranks.run(2, keep_through_unused_step, False, "none") == expected
