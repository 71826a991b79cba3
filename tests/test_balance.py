"""The books balance for every combination of what a job may ask of DDP and of the hook."""

import contextlib
import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks

STEPS = 5
# bfloat16 gradients are rounded when they are delivered; sums are of float32.
TOLERANCE = {False: 1e-5, True: 2e-2}


@dataclass(frozen=True)
class Combination:
    """What is switched on."""

    codec: str
    steps_of_rank: tuple[int, ...]  # different ones: under join()
    passes: int  # of a step, all but the last one under no_sync()
    leaves_out: tuple[bool, ...]  # in which steps a layer is not used, by any rank
    frozen: bool
    tied: bool
    two_dtypes: bool
    policy: dict[str, str] | None
    momentum: float
    max_norm: float | None
    decay: float
    guard: str
    warmup_steps: int
    flush: bool


class Net(nn.Module):
    """Four layers, one of which may be left out."""

    def __init__(self, combination: Combination) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(40, 60)
        self.left = nn.Linear(60, 60)
        self.right = nn.Linear(60, 60)
        self.last = nn.Linear(60, 50)
        if combination.tied:
            self.right.weight = self.left.weight
        if combination.frozen:
            self.first.requires_grad_(False)
        if combination.two_dtypes:
            self.last.bfloat16()

    def forward(self, inputs: torch.Tensor, leaves_out: bool) -> torch.Tensor:
        """Return activations."""
        hidden = self.right(self.first(inputs)).tanh()
        if not leaves_out:
            hidden = self.left(hidden)
        outputs: torch.Tensor = self.last(hidden.to(self.last.weight.dtype))
        return outputs.float()


def backward(model: nn.Module, step: int, micro_step: int, leaves_out: bool) -> None:
    seed = 1000 * step + 100 * micro_step + dist.get_rank()
    inputs = torch.randn(8, 40, generator=torch.Generator().manual_seed(seed))
    model(inputs, leaves_out).square().mean().backward()


def balance(combination: Combination) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(
        Net(combination), find_unused_parameters=any(combination.leaves_out), bucket_cap_mb=0.01
    )
    state = fastcomm.register(
        model,
        combination.codec,
        policy=combination.policy,
        momentum=combination.momentum,
        max_norm=combination.max_norm,
        residual_decay=combination.decay,
        guard=combination.guard,
        warmup_steps=combination.warmup_steps,
        min_compress_elements=100,
    )
    zeros = {n: torch.zeros(p.shape).double() for n, p in model.module.named_parameters()}
    put_in, delivered = ({n: zero.clone() for n, zero in zeros.items()} for _ in range(2))
    num_steps = combination.steps_of_rank[rank]
    longest = max(range(size), key=lambda r: combination.steps_of_rank[r])
    is_uneven = len(set(combination.steps_of_rank)) > 1
    with model.join() if is_uneven else contextlib.nullcontext():
        for step in range(num_steps):
            leaves_out = combination.leaves_out[step]
            if combination.flush and step == max(combination.steps_of_rank) - 1:
                state.flush()
            alone = copy.deepcopy(model.module)
            for micro_step in range(combination.passes):
                backward(alone, step, micro_step, leaves_out)
            mine = {n: p.grad.double() for n, p in alone.named_parameters() if p.grad is not None}
            before = state.state_dict()
            add(put_in, mine, before, combination, size)
            model.zero_grad()
            for micro_step in range(combination.passes):
                is_last = micro_step == combination.passes - 1
                with contextlib.nullcontext() if is_last else model.no_sync():
                    backward(model, step, micro_step, leaves_out)
            for name, parameter in model.module.named_parameters():
                if parameter.grad is not None:
                    delivered[name] += size * parameter.grad.double()
    check(put_in, delivered, state, longest, combination)


def add(
    put_in: dict[str, torch.Tensor],
    mine: dict[str, torch.Tensor],
    before: dict[str, Any],
    combination: Combination,
    size: int,
) -> None:
    """Enter what a step adds to this rank's account."""
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in mine.values()))
    factor = 1.0
    if combination.max_norm is not None:
        factor = min(1.0, combination.max_norm * math.sqrt(size) / (norm + 1e-6))
    for name, gradient in mine.items():
        put_in[name] += factor * gradient
    for name, residual in before["residuals"].items():
        put_in[name] += (combination.decay - 1) * residual.double()
    for name, velocity in before.get("velocities", {}).items():
        put_in[name] += combination.momentum * velocity.double()


def check(
    put_in: dict[str, torch.Tensor],
    delivered: dict[str, torch.Tensor],
    state: fastcomm.HookState,
    longest: int,
    combination: Combination,
) -> None:
    held = state.state_dict()["residuals"]
    for total in put_in.values():
        dist.all_reduce(total)
    largest = max(float(total.abs().max()) for total in put_in.values())
    for name, total in put_in.items():
        left = held.get(name, torch.zeros(total.shape)).double()
        given_out = delivered[name]
        dist.broadcast(given_out, longest)
        dist.all_reduce(left)
        error = float((given_out + left - total).abs().max())
        assert error <= TOLERANCE[combination.two_dtypes] * max(largest, 1e-3), (name, error)
        if combination.flush:
            assert not left.any(), f"{name}: not flushed"


def fitting(combination: Combination) -> Combination | None:
    """Return the combination, or None where it means nothing."""
    is_uneven = len(set(combination.steps_of_rank)) > 1
    if is_uneven and combination.flush:
        return None  # a rank that has joined cannot call flush() with the others
    if combination.momentum and any(combination.leaves_out):
        return None  # the velocity of what no rank uses goes on
    return combination


combinations = (
    st.builds(
        Combination,
        codec=st.sampled_from(["fp32", "bf16", "int8", "int4", "int2", "sign", "topk:0.05"]),
        steps_of_rank=st.sampled_from(
            [(5, 5), (5, 5), (5, 5, 5), (5, 2), (1, 5), (3, 5, 2), (0, 5)]
        ),
        passes=st.sampled_from([1, 1, 2]),
        leaves_out=st.sampled_from([(False,) * STEPS, (False, True, False, True, False)]),
        frozen=st.booleans(),
        tied=st.booleans(),
        two_dtypes=st.booleans(),
        policy=st.sampled_from([None, {}, {"left.*": "int8", "last.weight": "topk:0.1"}]),
        momentum=st.sampled_from([0.0, 0.0, 0.9]),
        max_norm=st.sampled_from([None, None, 0.01]),
        decay=st.sampled_from([1.0, 1.0, 0.8]),
        guard=st.sampled_from(["off", "warn", "adapt"]),
        warmup_steps=st.sampled_from([0, 3]),
        flush=st.booleans(),
    )
    .map(fitting)
    .filter(lambda combination: combination is not None)
)

in_processes = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # each try to shrink one takes seconds
)


@settings(in_processes, max_examples=25, derandomize=True)
@given(combination=combinations)
def test_the_books_balance(combination: Combination) -> None:
    ranks.run(len(combination.steps_of_rank), balance, combination)


@pytest.mark.stress
@pytest.mark.timeout(3000)
@settings(in_processes, max_examples=1000)
@given(combination=combinations)
def test_the_books_balance_for_a_thousand_combinations(combination: Combination) -> None:
    ranks.run(len(combination.steps_of_rank), balance, combination)
