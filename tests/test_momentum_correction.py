"""Momentum in the hook is that of Deep Gradient Compression, and of SGD where nothing is left out.

The reference is the paper's algorithm 3, written down for whole vectors.
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from given_gradients import GivenGradients, one_matrix, random_gradients
from training import loss_of, mlp

MOMENTUM = 0.9


class PaperRank:
    """Algorithm 3 of Lin et al., ICLR 2018, on one rank, without the learning rate."""

    def __init__(self, num_elements: int, k: int) -> None:
        self.velocity = torch.zeros(num_elements)
        self.accumulated = torch.zeros(num_elements)
        self.k = k

    def send(self, gradient: torch.Tensor, nesterov: bool) -> torch.Tensor:
        """Return what the rank sends: zero but for the k largest."""
        self.velocity = MOMENTUM * self.velocity + gradient
        update = gradient + MOMENTUM * self.velocity if nesterov else self.velocity
        self.accumulated = self.accumulated + update
        mask = torch.zeros_like(gradient, dtype=torch.bool)
        mask[self.accumulated.abs().topk(self.k).indices] = True
        # The wire has bfloat16; what that rounds off waits, too.
        sent = torch.where(mask, self.accumulated, 0.0).bfloat16().float()
        self.accumulated = self.accumulated - sent
        self.velocity = torch.where(mask, 0.0, self.velocity)
        return sent


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_sparse_updates_are_those_of_the_paper(num_ranks: int, nesterov: bool) -> None:
    model = one_matrix()
    density = 0.05
    k = round(density * model.weight.numel())
    options: dict[str, Any] = {"momentum": MOMENTUM, "nesterov": nesterov, "warmup_steps": 0}
    group = GivenGradients(model, num_ranks, f"topk:{density}", algorithm="gather", **options)
    velocity = torch.zeros(model.weight.numel())
    paper = [PaperRank(model.weight.numel(), k) for _ in range(num_ranks)]
    for step in range(20):
        of_ranks = random_gradients(model, num_ranks, step)
        found = group.average(of_ranks)["weight"].flatten()
        if num_ranks == 1:  # which has nobody to send to, and leaves nothing out: plain momentum
            alone = of_ranks[0]["weight"].flatten()
            velocity = MOMENTUM * velocity + alone
            expected = alone + MOMENTUM * velocity if nesterov else velocity
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            continue
        sent = [
            rank.send(gradients["weight"].flatten(), nesterov)
            for rank, gradients in zip(paper, of_ranks, strict=True)
        ]
        expected = torch.stack(sent).sum(0) * (1 / num_ranks)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    for index, rank in enumerate(paper if num_ranks > 1 else []):
        state = group.state(index)
        torch.testing.assert_close(state["velocities"]["weight"].flatten(), rank.velocity)
        torch.testing.assert_close(state["residuals"]["weight"].flatten(), rank.accumulated)


def train(hook_has_momentum: bool, nesterov: bool, codec: str) -> list[torch.Tensor]:
    model = DistributedDataParallel(mlp())
    options: dict[str, Any] = {}
    if hook_has_momentum:
        options = {"momentum": MOMENTUM, "nesterov": nesterov}
    fastcomm.register(model, codec, **options)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=0.05,
        momentum=0.0 if hook_has_momentum else MOMENTUM,
        nesterov=nesterov and not hook_has_momentum,
    )
    for step in range(8):
        optimizer.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_a_codec_that_leaves_nothing_out_it_is_sgd_with_momentum(nesterov: bool) -> None:
    expected = ranks.run(2, train, False, nesterov, "fp32")[0]
    for found in ranks.run(2, train, True, nesterov, "fp32"):
        for its, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(its, theirs, rtol=1e-4, atol=1e-6)


def resume_with_momentum() -> None:
    def start() -> tuple[DistributedDataParallel, fastcomm.HookState]:
        model = DistributedDataParallel(mlp())
        return model, fastcomm.register(model, "topk:0.05", momentum=MOMENTUM, warmup_steps=0)

    def gradients_of(model: DistributedDataParallel, step: int) -> list[torch.Tensor]:
        model.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    going_on, state = start()
    for step in range(4):
        gradients_of(going_on, step)
    saved = state.state_dict()
    resumed, other_state = start()
    other_state.load_state_dict(saved)
    for step in range(4, 7):
        pairs = zip(gradients_of(going_on, step), gradients_of(resumed, step), strict=True)
        assert all(torch.equal(its, theirs) for its, theirs in pairs)
    dist.barrier()


def test_velocities_are_part_of_the_state() -> None:
    ranks.run(2, resume_with_momentum)


@pytest.mark.parametrize("algorithm", ["ring", "scatter_gather"])
def test_all_that_velocities_add_up_to_is_delivered_or_held(algorithm: str) -> None:
    model = one_matrix()
    options: dict[str, Any] = {"momentum": MOMENTUM, "warmup_steps": 0, "algorithm": algorithm}
    group = GivenGradients(model, 3, "topk:0.02", **options)
    added, delivered = torch.zeros(4096).double(), torch.zeros(4096).double()
    velocities = [torch.zeros(4096)] * 3
    for step in range(6):
        of_ranks = random_gradients(model, 3, step)
        for velocity, gradients in zip(velocities, of_ranks, strict=True):
            added += MOMENTUM * velocity.double() + gradients["weight"].flatten().double()
        delivered += 3 * group.average(of_ranks)["weight"].flatten().double()
        velocities = [group.state(rank)["velocities"]["weight"].flatten() for rank in range(3)]
        assert all((velocity == 0).any() for velocity in velocities), "nothing was masked"
    held = torch.stack([group.residual(rank, "weight").double() for rank in range(3)]).sum(0)
    torch.testing.assert_close(delivered + held, added, rtol=1e-5, atol=1e-5)


def test_a_state_with_velocities_needs_momentum() -> None:
    first = GivenGradients(one_matrix(), 2, "topk:0.05", momentum=MOMENTUM)
    first.average(random_gradients(first.model, 2))
    second = fastcomm.Simulation(one_matrix(), 2, "topk:0.05")
    with pytest.raises(fastcomm.ArgumentError, match="without momentum"):
        second.load_state_dicts(first.simulation.state_dicts())


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (2, 3)])
def test_another_number_of_ranks_goes_on_with_the_mean_velocity(before: int, after: int) -> None:
    first = GivenGradients(one_matrix(), before, "topk:0.05", momentum=MOMENTUM)
    for step in range(3):
        first.average(random_gradients(first.model, before, step))
    states = [first.state(rank) for rank in range(before)]
    second = GivenGradients(one_matrix(), after, "topk:0.05", momentum=MOMENTUM)
    for state in second.simulation.states:
        state.load_state_dict(states)
    sums = [
        sum(
            (s["velocities"].get("weight", torch.zeros(64, 64)) for s in saved), torch.zeros(64, 64)
        )
        for saved in (states, [second.state(rank) for rank in range(after)])
    ]
    torch.testing.assert_close(sums[1] / after, sums[0] / before)


@pytest.mark.parametrize("codec", ["topk:0.05", "int4", "sign"])
def test_gradients_that_are_not_finite_reach_all_ranks_and_no_velocity(codec: str) -> None:
    model = nn.Linear(32, 32, bias=False)
    group = GivenGradients(model, 2, codec, momentum=MOMENTUM, policy={}, warmup_steps=0)
    for step in range(3):
        of_ranks = random_gradients(model, 2, step)
        if step == 1:
            of_ranks[0]["weight"][3, 5] = torch.nan
        average = group.average(of_ranks)["weight"]
        assert average.isfinite().all() == (step != 1)
    for rank in range(2):
        assert group.state(rank)["velocities"]["weight"].isfinite().all()
        assert group.residual(rank, "weight").isfinite().all()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"momentum": 1.0}, r"momentum 1 is outside \[0, 1\)"),
        ({"momentum": -0.5}, "momentum -0.5 is outside"),
        ({"nesterov": True}, "nesterov=True needs a momentum"),
        ({"momentum": 0.9, "error_feedback": False}, "momentum=0.9 is accumulated"),
        ({"residual_decay": 1.5}, "residual_decay 1.5 is outside"),
    ],
)
def test_settings_that_cannot_work_are_named(options: dict[str, Any], what: str) -> None:
    with pytest.raises(fastcomm.ArgumentError, match=what):
        fastcomm.Simulation(one_matrix(), 2, "int8", **options)
