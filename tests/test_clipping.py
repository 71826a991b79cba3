"""Each rank's gradient is clipped by the norm of all of it, before it is accumulated."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from given_gradients import GivenGradients, one_matrix, random_gradients
from test_hook_ddp_features import TwoDtypes
from training import Recorder, backward, local_gradients, mlp, recording_hook


def norm_of(gradients: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


def clipped_average(max_norm: float, bucket_megabytes: float) -> tuple[float, int]:
    """Return the largest error of the average over several buckets, and how many there were."""
    model = DistributedDataParallel(mlp(width=3001), bucket_cap_mb=bucket_megabytes)
    state = fastcomm.HookState("fp32", model.process_group, max_norm=max_norm)
    recorder = Recorder(state)
    state.attach(model)
    model.register_comm_hook(recorder, recording_hook)
    worst = 0.0
    for step in range(3):
        mine = local_gradients(model, step)
        factor = min(1.0, max_norm * math.sqrt(dist.get_world_size()) / norm_of(mine))
        averaged = backward(model, step)
        for name, gradient in mine.items():
            expected = gradient * factor
            dist.all_reduce(expected)
            expected /= dist.get_world_size()
            error = (averaged[name] - expected).abs().max() / expected.abs().max()
            worst = max(worst, float(error))
    return worst, len(recorder.steps[-1])


@pytest.mark.parametrize("max_norm", [0.05, 1e3])
def test_average_is_that_of_the_clipped_gradients(max_norm: float) -> None:
    for worst, num_buckets in ranks.run(2, clipped_average, max_norm, 1):
        assert num_buckets > 1, "all in one bucket: this tests little"
        assert worst <= 1e-4


def test_residuals_hold_what_was_clipped() -> None:
    model = one_matrix()
    group = GivenGradients(model, 2, "topk:0.01", max_norm=0.5, warmup_steps=0)
    of_ranks = random_gradients(model, 2)
    average = group.average(of_ranks)["weight"].double() * 2
    held = group.residual(0, "weight").double() + group.residual(1, "weight").double()
    factors = [0.5 * math.sqrt(2) / norm_of(gradients) for gradients in of_ranks]
    clipped = factors[0] * of_ranks[0]["weight"] + factors[1] * of_ranks[1]["weight"]
    torch.testing.assert_close(
        average.flatten() + held, clipped.flatten().double(), rtol=1e-4, atol=1e-7
    )


def test_scale_of_a_grad_scaler_is_taken_into_account() -> None:
    model = one_matrix()
    of_ranks = random_gradients(model, 2)
    plain = GivenGradients(model, 2, "fp32", max_norm=0.5)
    scaled = GivenGradients(model, 2, "fp32", max_norm=0.5)
    for state in scaled.simulation.states:
        state.grad_scale(1024.0)
    times_1024 = [{name: 1024 * g for name, g in of_rank.items()} for of_rank in of_ranks]
    expected = plain.average(of_ranks)["weight"]
    torch.testing.assert_close(scaled.average(times_1024)["weight"], 1024 * expected)


def test_norm_that_is_not_finite_clips_nothing_and_is_announced() -> None:
    model = one_matrix()
    group = GivenGradients(model, 2, "int8", max_norm=0.5)
    of_ranks = random_gradients(model, 2)
    of_ranks[1]["weight"][0, 0] = torch.inf
    average = group.average(of_ranks)["weight"]
    assert not average[0].isfinite().all()
    assert average[32:].isfinite().all()
    assert all(group.residual(rank, "weight").isfinite().all() for rank in range(2))


@pytest.mark.parametrize("num_ranks", [2, 8])
def test_average_of_independent_gradients_is_clipped_to_about_the_norm(num_ranks: int) -> None:
    model = one_matrix()
    group = GivenGradients(model, num_ranks, "fp32", max_norm=1.0)
    average = group.average(random_gradients(model, num_ranks))
    assert norm_of(average) == pytest.approx(1.0, rel=0.1)


def first_step_of_a_static_graph() -> None:
    # DDP calls none of the buckets the last one, and waits for the first.
    model = DistributedDataParallel(TwoDtypes(), static_graph=True)
    fastcomm.register(model, "int8", max_norm=1.0)
    for step in range(3):
        assert all(g.isfinite().all() for g in backward(model, step).values())


def test_buckets_of_a_static_graph_with_two_dtypes_do_not_wait_for_a_last_one() -> None:
    ranks.run(2, first_step_of_a_static_graph)


def fail_while_held() -> str:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int8", max_norm=1.0)
    backward(model, 0)
    if dist.get_rank() == 1:  # out of step: the exchange fails on both ranks
        state._sync.steps.number += 1
    with pytest.raises(fastcomm.Error) as caught:
        backward(model, 1)
    return type(caught.value).__name__


def test_failure_of_an_exchange_reaches_the_backward_pass() -> None:
    assert ranks.run(2, fail_while_held) == ["MismatchError", "MismatchError"]


def fail_to_find_the_norm() -> None:
    model = DistributedDataParallel(mlp(width=3001), bucket_cap_mb=1)
    recorder = Recorder(fastcomm.HookState("fp32", model.process_group, max_norm=1.0))
    recorder.state.attach(model)
    model.register_comm_hook(recorder, recording_hook)
    backward(model, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "vector_norm", None)
        with pytest.raises(fastcomm.Error, match="NoneType"):
            backward(model, 1)


def test_failure_before_the_exchange_reaches_the_backward_pass() -> None:
    ranks.run(2, fail_to_find_the_norm)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.inf, math.nan])
def test_norms_that_cannot_be_meant_are_named(max_norm: float) -> None:
    with pytest.raises(fastcomm.ArgumentError, match=r"max_norm .* must be positive"):
        fastcomm.Simulation(one_matrix(), 2, "int8", max_norm=max_norm)
