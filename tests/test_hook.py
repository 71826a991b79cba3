"""The hook under real DDP: its gradients, training with it, and its options."""

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import (
    CLASSES,
    backward,
    conserving_step,
    local_gradients,
    loss_of,
    mlp,
    residuals,
)

COMPRESSED = ("bf16", "int8", "int4", "sign", "topk:0.05")


# --- gradients --------------------------------------------------------------------------------


def worst_difference_from_plain_ddp(codec: str, by_register: bool) -> dict[str, float]:
    """Return, by parameter, the worst relative difference of averaged gradients in three steps."""
    plain, compressed = DistributedDataParallel(mlp()), DistributedDataParallel(mlp())
    if by_register:
        fastcomm.register(compressed, codec, warmup_steps=0)
    else:
        compressed.register_comm_hook(
            fastcomm.HookState(codec, warmup_steps=0), fastcomm.compress_hook
        )
    worst: dict[str, float] = {}
    for step in range(3):
        expected, found = backward(plain, step), backward(compressed, step)
        for name, gradient in expected.items():
            difference = (found[name] - gradient).abs().max() / gradient.abs().max()
            worst[name] = max(worst.get(name, 0.0), difference.item())
    return worst


@pytest.mark.parametrize("by_register", [True, False], ids=["register", "register_comm_hook"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_fp32_hook_gives_plain_ddp_gradients(num_ranks: int, by_register: bool) -> None:
    for worst in ranks.run(num_ranks, worst_difference_from_plain_ddp, "fp32", by_register):
        assert max(worst.values()) <= 1e-6


@pytest.mark.parametrize("codec", COMPRESSED)
def test_one_dimensional_and_small_parameters_are_exact_beside_compressed_ones(codec: str) -> None:
    for worst in ranks.run(2, worst_difference_from_plain_ddp, codec, True):
        for name, difference in worst.items():
            if name in ("0.weight", "2.weight"):
                assert difference > 1e-4, f"{name} was not compressed"
            else:
                assert difference <= 1e-6, f"{name} was compressed"


@pytest.mark.parametrize("codec", COMPRESSED)
def test_one_rank_alone_keeps_its_gradients(codec: str) -> None:
    (worst,) = ranks.run(1, worst_difference_from_plain_ddp, codec, True)
    assert max(worst.values()) == 0


def final_loss(codec: str | None) -> tuple[float, bool]:
    """Train; return the loss, averaged over the last steps and the ranks, and rank identity."""
    model = DistributedDataParallel(mlp())
    if codec is not None:
        fastcomm.register(
            model,
            codec,
            error_feedback=not fastcomm.codec(codec).is_stochastic,
            warmup_steps=0,
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    last_losses = []
    for step in range(120):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= 100:
            last_losses.append(loss.item())
    total = torch.tensor(sum(last_losses) / len(last_losses))
    dist.all_reduce(total)
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    of_first = own.clone()
    dist.broadcast(of_first, 0)
    return total.item() / dist.get_world_size(), torch.equal(own, of_first)


@cache
def plain_final_loss() -> float:
    return ranks.run(2, final_loss, None)[0][0]


@pytest.mark.parametrize(
    ("codec", "share"),
    [
        ("bf16", 0.01),
        ("fp8", 0.01),
        ("int8", 0.01),
        ("int8:stochastic", 0.01),
        ("int4", 0.02),
        ("int2", 0.05),
        ("sign", 0.1),
        ("topk:0.05", 0.2),
    ],
)
def test_compressed_training_follows_plain_ddp(codec: str, share: float) -> None:
    plain_loss = plain_final_loss()
    progress = math.log(CLASSES) - plain_loss
    assert progress > 1, "plain DDP does not learn this"
    for loss, parameters_are_equal in ranks.run(2, final_loss, codec):
        assert abs(loss - plain_loss) < share * progress
        assert parameters_are_equal, "the ranks' models drifted apart"


# --- options ----------------------------------------------------------------------------------


def steps_with(options: dict[str, Any], num_steps: int) -> tuple[list[int], list[float]]:
    """Return the bytes sent in each step, and each step's violation of conservation."""
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, **{"warmup_steps": 0, **options})
    sent, errors = [0], []
    for step in range(num_steps):
        errors.append(conserving_step(model, state, step))
        sent.append(state.stats.wire_bytes)
    return [after - before for before, after in itertools.pairwise(sent)], errors


def test_warm_up_of_top_k_becomes_sparser_step_by_step_and_loses_nothing() -> None:
    options = {"codec": "topk:0.01", "warmup_steps": 4}
    for sent, errors in ranks.run(2, steps_with, options, 7):
        # Dense (int4), dense, sparse, sparser, then the target from the fifth step on.
        assert sent[1] == sent[0] > sent[2] > sent[3] > sent[4] == sent[5] == sent[6]
        assert max(errors) <= 1e-6


def test_warm_up_of_a_dense_codec_is_uncompressed_and_loses_nothing() -> None:
    for sent, errors in ranks.run(2, steps_with, {"codec": "int4", "warmup_steps": 2}, 4):
        assert sent[0] == sent[1] > 4 * sent[2] == 4 * sent[3]
        assert max(errors) <= 1e-6


def test_everything_is_compressed_from_min_compress_elements_on() -> None:
    few = ranks.run(2, steps_with, {"codec": "int8", "min_compress_elements": 10**6}, 1)
    most = ranks.run(2, steps_with, {"codec": "int8", "min_compress_elements": 1}, 1)
    default = ranks.run(2, steps_with, {"codec": "int8"}, 1)
    assert few[0][0][0] > 3 * default[0][0][0]
    assert default[0][0][0] > most[0][0][0]


def without_error_feedback() -> None:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int4", error_feedback=False)
    for _ in range(2):  # DDP rebuilds its buckets, and with them the blocks, in the second step
        first = backward(model, 0)
    for _ in range(2):
        again = backward(model, 0)
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(r.any() for r in residuals(state).values())


def test_without_error_feedback_equal_gradients_give_equal_results() -> None:
    ranks.run(2, without_error_feedback)


def flush_once(codec: str) -> None:
    num_ranks = dist.get_world_size()
    model = DistributedDataParallel(mlp(width=3001), bucket_cap_mb=1)
    state = fastcomm.register(model, codec, warmup_steps=0)
    for step in range(3):
        assert conserving_step(model, state, step) <= 1e-6
    state.flush()
    assert any(r.any() for r in residuals(state).values()), "nothing to flush"
    assert conserving_step(model, state, 3) <= 1e-6
    assert not any(r.any() for r in residuals(state).values())
    # Only one step is sent uncompressed; the next one compresses again.
    sent_before = state.stats.wire_bytes
    mine = local_gradients(model, 4)
    averaged = backward(model, 4)
    assert state.stats.wire_bytes - sent_before < sum(g.numel() for g in mine.values()) * 4 / 3
    held = residuals(state)
    total = averaged["0.weight"].double() * num_ranks
    total += _sum(held["0.weight"].view_as(total))
    torch.testing.assert_close(total, _sum(mine["0.weight"]), rtol=1e-5, atol=1e-8)


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.double()
    dist.all_reduce(total)
    return total


@pytest.mark.parametrize("codec", ["int4", "sign", "topk:0.01"])
def test_flush_delivers_all_residuals_in_one_step(codec: str) -> None:
    ranks.run(2, flush_once, codec)
