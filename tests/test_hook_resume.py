"""Training that stops and goes on from a checkpoint gives the bits of training that did not."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from ledger import digest
from training import Recorder, backward, conserving_step, loss_of, mlp, register_recorded

Saved = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
Run = tuple[DistributedDataParallel, Recorder, torch.optim.Optimizer]


def wide() -> nn.Module:
    """Return a model of 3.9 MB."""
    return mlp(width=6001)


class TwoDtypes(nn.Module):
    """Layers of float32 and bfloat16 in turns, so that buckets of both are mixed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Linear(rows, columns).to(dtype)
            for rows, columns, dtype in (
                (60, 6001, torch.float32),
                (6001, 97, torch.bfloat16),
                (97, 4001, torch.float32),
                (4001, 150, torch.bfloat16),
                (150, 10, torch.float32),
            )
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            inputs = layer(inputs.to(layer.weight.dtype)).relu()
        return inputs


def start(model: nn.Module, ddp_options: dict[str, Any], options: dict[str, Any]) -> Run:
    ddp_model = DistributedDataParallel(model, **{"bucket_cap_mb": 1, **ddp_options})
    recorder = register_recorded(ddp_model, **options)
    return ddp_model, recorder, torch.optim.SGD(ddp_model.parameters(), lr=0.1, momentum=0.9)


def train(run: Run, steps: range) -> list[str]:
    """Return the hash of all parameters after each step."""
    model, _, optimizer = run
    digests = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        digests.append(digest(torch.cat([p.detach().flatten() for p in model.parameters()])))
    return digests


def save(run: Run) -> Saved:
    """Return what a checkpoint file holds of a run."""
    model, recorder, optimizer = run
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), recorder.state.state_dict()), file)
    file.seek(0)
    saved: Saved = torch.load(file, weights_only=True)
    return saved


def load(run: Run, saved: Saved) -> None:
    model, recorder, optimizer = run
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    recorder.state.load_state_dict(saved[2])


def stop_and_resume(
    make_model: Callable[[], nn.Module], ddp_options: dict[str, Any], options: dict[str, Any]
) -> list[int]:
    """Return the numbers of buckets in the steps after the checkpoint."""
    going_on = start(make_model(), ddp_options, options)
    train(going_on, range(4))
    saved = save(going_on)
    expected = train(going_on, range(4, 9))

    resumed = start(make_model(), ddp_options, options)
    load(resumed, saved)
    assert train(resumed, range(4, 9)) == expected
    state = resumed[1].state
    assert state.state_dict()["step"] == 9
    assert state.stats.steps == 5  # what this state synchronized itself
    # Also what was saved later is the same, so that training may stop more than once.
    after, expected_after = state.state_dict(), going_on[1].state.state_dict()
    assert after["buckets"] == expected_after["buckets"]
    for name, residual in expected_after["residuals"].items():
        assert torch.equal(after["residuals"][name], residual)
    return [len(buckets) for buckets in resumed[1].steps]


@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [
        (2, {"codec": "int8"}),
        (2, {"codec": "sign"}),
        (2, {"codec": "topk:0.05"}),
        (2, {"codec": "int8:stochastic", "error_feedback": False}),
        (2, {"codec": "topk:0.01", "warmup_steps": 6}),
        (2, {"codec": "int4", "warmup_steps": 5}),
        (2, {"codec": "fp32"}),
        (2, {"codec": "int4", "max_norm": 0.2}),
        (2, {"codec": "topk:0.05", "momentum": 0.5, "guard": "adapt"}),
        (3, {"codec": "int8"}),
        (3, {"codec": "int4:stochastic", "error_feedback": False}),
        (3, {"codec": "topk:0.05", "algorithm": "scatter_gather"}),
    ],
    ids=str,
)
def test_resumed_training_gives_the_bits_of_training_that_went_on(
    num_ranks: int, options: dict[str, Any]
) -> None:
    for num_buckets in ranks.run(num_ranks, stop_and_resume, wide, {}, options):
        assert num_buckets[0] == 1
        assert min(num_buckets[1:]) >= 2, "DDP did not rebuild its buckets: this tests nothing"


@pytest.mark.parametrize("ddp_options", [{}, {"static_graph": True}], ids=str)
@pytest.mark.parametrize("codec", ["int8", "topk:0.05"])
def test_model_of_two_dtypes_resumes_with_the_same_bits(
    codec: str, ddp_options: dict[str, Any]
) -> None:
    for num_buckets in ranks.run(2, stop_and_resume, TwoDtypes, ddp_options, {"codec": codec}):
        assert num_buckets[-1] > 2, f"one bucket for each dtype: this tests nothing {num_buckets}"


@pytest.mark.parametrize(
    "ddp_options",
    [
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"bucket_cap_mb": 25},  # one bucket all the time, but rebuilt in another order
    ],
    ids=str,
)
def test_ddp_options_do_not_change_that(ddp_options: dict[str, Any]) -> None:
    options = {"codec": "int8:stochastic", "error_feedback": False}
    ranks.run(2, stop_and_resume, wide, ddp_options, options)
    ranks.run(2, stop_and_resume, wide, ddp_options, {"codec": "int4"})


def flush_in_next_step() -> None:
    going_on = start(wide(), {}, {"codec": "int4"})
    train(going_on, range(3))
    going_on[1].state.flush()
    saved = save(going_on)
    expected = train(going_on, range(3, 5))
    resumed = start(wide(), {}, {"codec": "int4"})
    load(resumed, saved)
    assert train(resumed, range(3, 5)) == expected


def test_flush_that_was_asked_for_before_the_checkpoint_still_comes() -> None:
    ranks.run(2, flush_in_next_step)


# --- other buckets ----------------------------------------------------------------------------


def resume_with(
    num_steps: int, ddp_options: dict[str, Any], drop: str
) -> tuple[list[int], list[float]]:
    """Return the numbers of buckets after a resume, and the violation of conservation."""
    before = start(wide(), {}, {"codec": "int4"})
    train(before, range(num_steps))
    saved = save(before)
    saved[2].pop(drop, None)
    resumed = start(wide(), ddp_options, {"codec": "int4"})
    load(resumed, saved)
    model, recorder, _ = resumed
    worst = [conserving_step(model, recorder.state, step) for step in range(4, 8)]
    return [len(buckets) for buckets in recorder.steps], worst


@pytest.mark.parametrize(
    ("num_steps", "ddp_options", "drop"),
    [
        (4, {"bucket_cap_mb": 2}, ""),
        (4, {"bucket_cap_mb": 25}, ""),
        (4, {"bucket_cap_mb": 2, "find_unused_parameters": True}, ""),
        (1, {}, ""),  # before DDP rebuilt its buckets
        (4, {}, "buckets"),  # a state that an older fastcomm saved
    ],
    ids=str,
)
def test_other_buckets_than_the_saved_ones_lose_nothing(
    num_steps: int, ddp_options: dict[str, Any], drop: str
) -> None:
    for num_buckets, worst in ranks.run(2, resume_with, num_steps, ddp_options, drop):
        assert max(worst) <= 1e-6
        assert len(num_buckets) == 4


def buckets_of_checkpoints() -> None:
    """What is saved between loading and the first step is what was loaded."""
    before = start(wide(), {}, {"codec": "int4"})
    train(before, range(3))
    saved = save(before)[2]
    assert sorted(name for bucket in saved["buckets"] for name in bucket) == sorted(
        name for name, _ in wide().named_parameters()
    )
    after = start(wide(), {}, {"codec": "int4"})[1].state
    assert after.state_dict()["buckets"] == []
    after.load_state_dict(saved)
    again = after.state_dict()
    assert again["buckets"] == saved["buckets"]
    assert again["residuals"].keys() == saved["residuals"].keys()


def test_a_state_that_was_loaded_can_be_saved_again_at_once() -> None:
    ranks.run(2, buckets_of_checkpoints)


# --- errors -----------------------------------------------------------------------------------


def fail_in_a_part() -> str:
    """One rank has loaded the checkpoint, the other has not: their buckets differ."""
    before = start(wide(), {}, {"codec": "int4"})
    train(before, range(3))
    saved = save(before)
    model, recorder, _ = start(wide(), {}, {"codec": "int4"})
    if recorder.state.process_group.rank() == 0:
        recorder.state.load_state_dict(saved[2])
    with pytest.raises(fastcomm.MismatchError) as caught:
        backward(model, 3)
    return str(caught.value)


def test_a_checkpoint_that_only_one_rank_loads_is_an_error_on_both() -> None:
    first, second = ranks.run(2, fail_in_a_part)
    assert first == second
    assert "the ranks disagree on bucket" in first
