"""The hook with autocast, GradScaler, and models in half precision."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from ledger import digest
from training import backward, batch, conserving_step, loss_of, mlp, residuals

CODECS = ("fp32", "bf16", "fp16", "int8", "sign", "topk:0.05")


def autocast_steps(codec: str) -> float:
    """Return the largest difference from plain DDP's gradients, relative to the largest one."""
    plain, model = DistributedDataParallel(mlp()), DistributedDataParallel(mlp())
    fastcomm.register(model, codec, warmup_steps=0)
    worst = 0.0
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = backward(plain, step), backward(model, step)
        for name, gradient in expected.items():
            assert found[name].dtype == torch.float32
            difference = (found[name] - gradient).abs().max() / gradient.abs().max()
            worst = max(worst, difference.item())
    return worst


@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 1e-6), ("int8", 0.02)])
def test_autocast_gradients_are_those_of_plain_ddp(codec: str, tolerance: float) -> None:
    assert max(ranks.run(2, autocast_steps, codec)) <= tolerance


def parameters_digest(model: torch.nn.Module) -> str:
    return digest(torch.cat([p.detach().flatten() for p in model.parameters()]))


def scale_gradients(codec: str, poison: float) -> None:
    """Three steps with a GradScaler; the second has a non-finite loss on one rank."""
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, codec, warmup_steps=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, backoff_factor=0.5)
    for step in range(3):
        poisoned = step == 1
        before, scale_before = parameters_digest(model), scaler.get_scale()
        optimizer.zero_grad()
        loss = loss_of(model, step)
        if poisoned and dist.get_rank() == 1:
            loss = loss * poison
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

        after = parameters_digest(model)
        assert (after == before) == poisoned, "only the poisoned step is to be skipped"
        assert scaler.get_scale() == (scale_before / 2 if poisoned else scale_before)
        assert all(r.isfinite().all() for r in residuals(state).values())
        of_ranks: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(of_ranks, after)
        assert len(set(of_ranks)) == 1, "some rank skipped and another did not"


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
@pytest.mark.parametrize("codec", CODECS)
def test_overflow_on_one_rank_makes_grad_scaler_skip_on_all(codec: str, poison: float) -> None:
    ranks.run(2, scale_gradients, codec, poison)


def train(codec: str, growth_interval: int, tells_scale: bool) -> str:
    """Return a digest of the parameters after steps in which the scale grows, 0: without scaler."""
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, codec, warmup_steps=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=256.0, growth_interval=growth_interval or 1, enabled=growth_interval > 0
    )
    for step in range(6):
        if tells_scale:
            state.grad_scale(scaler)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        if step == 3:  # a checkpoint keeps the scale with the residuals
            saved = state.state_dict()
            assert saved["grad_scale"] == (scaler.get_scale() / 2 if tells_scale else None)
            state.load_state_dict(saved)
    return parameters_digest(model)


@pytest.mark.parametrize("codec", ["int8", "int4", "sign", "topk:0.05"])
def test_residuals_follow_the_scale_of_a_grad_scaler(codec: str) -> None:
    """Scales are powers of two: bit by bit, training is what it would be without a scaler."""
    unscaled = ranks.run(2, train, codec, 0, False)
    assert ranks.run(2, train, codec, 2, True) == unscaled
    assert ranks.run(2, train, codec, 2, False) != unscaled, "the scale has no effect: no test"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    assert ranks.run(1, refuse_scale, scale) == [True]


def refuse_scale(scale: float) -> bool:
    state = fastcomm.HookState("int8")
    with pytest.raises(fastcomm.ArgumentError, match="scale of the gradients"):
        state.grad_scale(scale)
    return True


def overflow_one_element(codec: str) -> None:
    """A single infinite element, in a matrix that is compressed, must reach the other rank."""
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, codec, warmup_steps=0)
    weight = model.module[0].weight
    if dist.get_rank() == 0:

        def poison(gradient: torch.Tensor) -> torch.Tensor:
            poisoned = gradient.clone()
            poisoned[70, 30] = float("inf")
            return poisoned

        handle = weight.register_hook(poison)
    averaged = backward(model, 0)
    assert not averaged["0.weight"][70, 30].isfinite()
    assert all(r.isfinite().all() for r in residuals(state).values())
    # Other blocks, and other parameters in the same message, are not touched.
    assert averaged["0.weight"][:50].isfinite().all()
    assert all(g.isfinite().all() for name, g in averaged.items() if name != "0.weight")
    if dist.get_rank() == 0:
        handle.remove()
    assert conserving_step(model, state, 1) <= 1e-6


@pytest.mark.parametrize("codec", CODECS)
def test_one_infinite_element_reaches_all_ranks_and_nothing_else(codec: str) -> None:
    ranks.run(2, overflow_one_element, codec)


def low_precision_steps(codec: str, dtype: torch.dtype) -> tuple[float, list[str]]:
    """Return the largest difference from the exact average, and hashes of the results."""
    model = DistributedDataParallel(mlp(dtype=dtype))
    fastcomm.register(model, codec, warmup_steps=0)
    worst, digests = 0.0, []
    for step in range(3):
        local = DistributedDataParallel(mlp(dtype=dtype)).module
        mine = backward(local, step)
        for name, averaged in backward(model, step).items():
            assert averaged.dtype == dtype
            exact = mine[name].float()
            dist.all_reduce(exact)
            exact /= dist.get_world_size()
            difference = (averaged.float() - exact).abs().max() / exact.abs().max()
            worst = max(worst, difference.item())
            digests.append(digest(averaged))
    return worst, digests


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 0), ("int8", 0.02), ("int4", 0.3)])
def test_gradients_in_half_precision_are_averaged_in_f32_and_rounded_once(
    codec: str, tolerance: float, dtype: torch.dtype
) -> None:
    rounding = torch.finfo(dtype).eps / 2
    (worst, digests), (_, digests_there) = ranks.run(2, low_precision_steps, codec, dtype)
    assert worst <= tolerance + rounding
    assert digests == digests_there


def train_in(dtype: torch.dtype, codec: str | None) -> float:
    model = DistributedDataParallel(mlp(dtype=dtype))
    if codec is not None:
        fastcomm.register(model, codec, warmup_steps=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(60):
        optimizer.zero_grad()
        loss_of(model, step % 2).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    inputs, _ = batch(0)
    assert model(inputs.to(dtype)).isfinite().all()
    total = loss_of(model, 0).detach()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def test_bfloat16_model_learns_as_with_plain_ddp() -> None:
    plain = ranks.run(2, train_in, torch.bfloat16, None)[0]
    compressed = ranks.run(2, train_in, torch.bfloat16, "int8")[0]
    assert plain < 1.6, "plain DDP does not learn this"
    assert abs(compressed - plain) < 0.1
