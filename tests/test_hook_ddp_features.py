"""The hook under what DDP can be told to do: every option that changes what buckets look like."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from ledger import digest
from training import (
    backward,
    batch,
    conserving_step,
    gradients,
    loss_of,
    mlp,
    register_recorded,
    residuals,
)


def differences(model: nn.Module, expected: dict[str, torch.Tensor]) -> float:
    """Return the worst difference of a model's gradients, relative to the largest of each."""
    found = gradients(model)
    assert found.keys() == expected.keys()
    return max(
        ((found[n] - e).abs().max() / e.abs().max().clamp(min=1e-30)).item()
        for n, e in expected.items()
    )


# --- buckets ----------------------------------------------------------------------------------


def conserve_across_rebuild(codec: str, ddp_options: dict[str, Any]) -> tuple[list[int], float]:
    """Return the number of buckets in each step, and the worst violation of conservation."""
    # 3.9 MB: DDP has one bucket of all in the first step, and two when it rebuilds them.
    model = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1, **ddp_options)
    recorder = register_recorded(model, codec)
    worst = max(conserving_step(model, recorder.state, step) for step in range(4))
    return [len(buckets) for buckets in recorder.steps], worst


@pytest.mark.parametrize("codec", ["int8", "int4", "int2", "topk:0.01"])
def test_residuals_follow_their_parameters_when_ddp_rebuilds_its_buckets(codec: str) -> None:
    for num_buckets, worst in ranks.run(2, conserve_across_rebuild, codec, {}):
        assert num_buckets[0] == 1
        assert min(num_buckets[1:]) >= 2, "DDP did not rebuild its buckets: this tests nothing"
        assert worst <= 1e-6


@pytest.mark.parametrize(
    "ddp_options",
    [
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"static_graph": True, "gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
    ],
    ids=str,
)
def test_ddp_options_lose_nothing(ddp_options: dict[str, Any]) -> None:
    for num_buckets, worst in ranks.run(2, conserve_across_rebuild, "int4", ddp_options):
        assert max(num_buckets) >= 2, "all in one bucket: this tests nothing"
        assert worst <= 1e-6


class TwoDtypes(nn.Module):
    """A float32 and a bfloat16 layer: buckets have one dtype, so that there are always two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(60, 150)
        self.second = nn.Linear(150, 10).to(torch.bfloat16)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits in bfloat16."""
        hidden: torch.Tensor = self.first(inputs).relu()
        logits: torch.Tensor = self.second(hidden.to(torch.bfloat16))
        return logits


def steps_with_two_dtypes(ddp_options: dict[str, Any]) -> tuple[list[int], float]:
    plain = DistributedDataParallel(TwoDtypes(), **ddp_options)
    model = DistributedDataParallel(TwoDtypes(), **ddp_options)
    state = fastcomm.register(model, "fp32")
    worst, counted = 0.0, []
    for step in range(4):
        expected = backward(plain, step)
        backward(model, step)
        # bfloat16: fastcomm rounds the sum once, gloo also in between.
        worst = max(worst, differences(model, expected))
        counted.append(state.stats.steps)
    return counted, worst


@pytest.mark.parametrize("ddp_options", [{}, {"static_graph": True}], ids=str)
def test_model_of_two_dtypes_is_reduced_and_its_steps_are_counted(
    ddp_options: dict[str, Any],
) -> None:
    for counted, worst in ranks.run(2, steps_with_two_dtypes, ddp_options):
        assert worst <= 0.01
        assert counted == [1, 2, 3, 4]


def flush_after_first_step(ddp_options: dict[str, Any]) -> bool:
    model = DistributedDataParallel(TwoDtypes(), **ddp_options)
    state = fastcomm.register(model, "int8")
    backward(model, 0)
    state.flush()
    backward(model, 1)
    return any(r.any() for r in residuals(state).values())


@pytest.mark.parametrize("ddp_options", [{}, {"static_graph": True}], ids=str)
def test_flush_after_the_first_step_holds_for_a_model_of_two_dtypes(
    ddp_options: dict[str, Any],
) -> None:
    assert ranks.run(2, flush_after_first_step, ddp_options) == [False, False]


# --- parameters without gradients -------------------------------------------------------------


class Branches(nn.Module):
    """Uses one of two layers: which one depends on the call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.top = nn.Linear(60, 80), nn.Linear(60, 80), nn.Linear(80, 10)

    def forward(self, inputs: torch.Tensor, use_left: bool) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.top((self.left if use_left else self.right)(inputs).relu())
        return logits


def use_branches(codec: str) -> float:
    """Return the worst difference from plain DDP when the ranks use different parameters."""
    plain = DistributedDataParallel(Branches(), find_unused_parameters=True)
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    fastcomm.register(model, codec, warmup_steps=0)
    worst = 0.0
    for step in range(5):
        # Both ranks left, both right, then each another one.
        use_left = (True, False, dist.get_rank() == 0, dist.get_rank() == 1, True)[step]
        for candidate in (plain, model):
            candidate.zero_grad()
            inputs, labels = batch(step)
            logits = candidate(inputs, use_left)
            nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        worst = max(worst, differences(model, gradients(plain)))
    return worst


def test_parameters_unused_on_some_ranks_get_plain_ddp_gradients() -> None:
    assert max(ranks.run(2, use_branches, "fp32")) <= 1e-6


def test_parameters_unused_on_some_ranks_can_be_compressed() -> None:
    # Residuals of other steps arrive late: close, not equal.
    assert max(ranks.run(2, use_branches, "int8")) <= 0.05


def freeze_a_layer() -> float:
    module = mlp()
    module[0].requires_grad_(False)
    model = DistributedDataParallel(module)
    state = fastcomm.register(model, "int4")
    return max(conserving_step(model, state, step) for step in range(3))


def test_frozen_parameters_are_left_alone() -> None:
    assert max(ranks.run(2, freeze_a_layer)) <= 1e-6


# --- accumulation -----------------------------------------------------------------------------


def accumulate(codec: str, gradient_as_bucket_view: bool) -> tuple[float, int, int]:
    plain, model = (
        DistributedDataParallel(mlp(), gradient_as_bucket_view=gradient_as_bucket_view)
        for _ in range(2)
    )
    state = fastcomm.register(model, codec, warmup_steps=0)
    worst = 0.0
    for step in range(3):
        for candidate in (plain, model):
            candidate.zero_grad()
            sent_before = state.stats.wire_bytes
            with candidate.no_sync():
                for part in range(2):
                    loss_of(candidate, 10 * step + part).backward()  # type: ignore[no-untyped-call]
            assert state.stats.wire_bytes == sent_before, "no_sync() was not silent"
            loss_of(candidate, 10 * step + 2).backward()  # type: ignore[no-untyped-call]
        worst = max(worst, differences(model, gradients(plain)))
    return worst, state.stats.steps, state.stats.num_elements


@pytest.mark.parametrize("gradient_as_bucket_view", [False, True])
@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 1e-6), ("int8", 0.03)])
def test_no_sync_accumulates_locally_and_synchronizes_the_sum_once(
    codec: str, tolerance: float, gradient_as_bucket_view: bool
) -> None:
    for worst, steps, num_elements in ranks.run(2, accumulate, codec, gradient_as_bucket_view):
        assert worst <= tolerance
        assert steps == 3
        assert num_elements == 3 * sum(p.numel() for p in mlp().parameters())


# --- groups and models ------------------------------------------------------------------------


def train_in_sub_group() -> float | None:
    group = dist.new_group([0, 2])
    if dist.get_rank() == 1:
        return None
    plain = DistributedDataParallel(mlp(), process_group=group)
    model = DistributedDataParallel(mlp(), process_group=group)
    fastcomm.register(model, "fp32")
    worst = 0.0
    for step in range(3):
        expected = backward(plain, step)
        backward(model, step)
        worst = max(worst, differences(model, expected))
    return worst


def test_model_of_a_sub_group_averages_over_its_ranks_only() -> None:
    first, outsider, last = ranks.run(3, train_in_sub_group)
    assert outsider is None
    assert first is not None
    assert last is not None
    assert max(first, last) <= 1e-6


def train_two_models() -> None:
    """Two models in turns, their backward passes nested, must not know of each other."""
    codecs = ("int4", "topk:0.05")
    alone = []
    for codec in codecs:
        model = DistributedDataParallel(mlp())
        state = fastcomm.register(model, codec, warmup_steps=0)
        of_steps = [backward(model, step) for step in range(4)]
        alone.append((of_steps, residuals(state), state.stats.wire_bytes))

    models = [DistributedDataParallel(mlp()) for _ in codecs]
    states = [fastcomm.register(m, c, warmup_steps=0) for m, c in zip(models, codecs, strict=True)]
    for step in range(4):
        for model in models:
            model.zero_grad()
        losses = [loss_of(model, step) for model in models]
        sum(losses[1:], losses[0]).backward()  # type: ignore[no-untyped-call]
        for model, (of_steps, _, _) in zip(models, alone, strict=True):
            for name, gradient in gradients(model).items():
                assert digest(gradient) == digest(of_steps[step][name]), f"{name} in step {step}"
    for state, (_, expected, wire_bytes) in zip(states, alone, strict=True):
        held = residuals(state)
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[name], expected[name]) for name in held)
        assert state.stats.wire_bytes == wire_bytes


def test_two_models_in_one_process_have_states_of_their_own() -> None:
    ranks.run(2, train_two_models)
