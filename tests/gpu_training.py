"""What ranks do in the tests of the hook on a GPU; each function runs on every rank."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from ledger import conservation_error, digest
from on_gpu import GPU, gpu_mlp, to_cpu
from promises import is_rotated
from training import backward, local_gradients, loss_of, mlp, residuals

Group = dist.ProcessGroup | None


def gpu_model(group: Group, **options: Any) -> DistributedDataParallel:
    """Return the model of training.py, on the GPU, under DDP."""
    return DistributedDataParallel(gpu_mlp(), process_group=group, **options)


def parameters_digest(model: torch.nn.Module) -> str:
    """Return the hash of all parameters."""
    return digest(torch.cat([p.detach().flatten() for p in model.parameters()]).cpu())


def identical_on_all_ranks(model: torch.nn.Module) -> bool:
    """Return whether all ranks have the same bits in their parameters. Collective."""
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, parameters_digest(model))
    return len(set(digests)) == 1


def conserving_step(model: DistributedDataParallel, state: fastcomm.HookState, step: int) -> float:
    """Do one backward pass; return the worst violation of conservation by any parameter."""
    mine = to_cpu(local_gradients(model, step))
    before = to_cpu(residuals(state))
    averaged = to_cpu(backward(model, step))
    after = to_cpu(residuals(state))
    assert mine.keys() == averaged.keys()
    assert after.keys() == (mine.keys() if state.codec.loses_bits else set())
    zeros = {name: torch.zeros(gradient.numel()) for name, gradient in mine.items()}
    arguments = [
        (
            averaged[name].flatten().double() * dist.get_world_size(),
            mine[name].flatten(),
            before.get(name, zeros[name]),
            after.get(name, zeros[name]),
        )
        for name in mine
    ]
    if is_rotated(state.codec.name):  # blocks hold several parameters
        delivered, gradient, held, left = (torch.cat(p) for p in zip(*arguments, strict=True))
        return conservation_error(delivered, gradient, held, left, block=gradient.numel())
    return max(conservation_error(*of_parameter) for of_parameter in arguments)


def worst_difference_from_plain_ddp(group: Group, codec: str) -> float:
    """Return the worst difference of averaged gradients, relative to a parameter's largest one."""
    plain, compressed = gpu_model(group), gpu_model(group)
    fastcomm.register(compressed, codec, warmup_steps=0)
    worst = 0.0
    for step in range(3):
        expected, found = backward(plain, step), backward(compressed, step)
        for name, gradient in expected.items():
            assert found[name].device.type == GPU.type
            difference = (found[name] - gradient).abs().max() / gradient.abs().max()
            worst = max(worst, difference.item())
    return worst


def keep_books(group: Group, codec: str) -> tuple[float, list[str]]:
    """Return the worst violation of conservation, and the devices of the residuals."""
    model = gpu_model(group, bucket_cap_mb=0.02)
    state = fastcomm.register(model, codec, warmup_steps=0)
    worst = max(conserving_step(model, state, step) for step in range(4))
    return worst, sorted({r.device.type for r in residuals(state).values()})


def final_loss(group: Group, codec: str | None) -> tuple[float, bool]:
    """Train; return the loss, averaged over the last steps and the ranks, and rank identity."""
    model = gpu_model(group)
    if codec is not None:
        fastcomm.register(model, codec, warmup_steps=0)
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
    return total.item() / dist.get_world_size(), identical_on_all_ranks(model)


def sent_bytes(group: Group, codec: str, on_gpu: bool) -> tuple[int, int, int, int]:
    """Return steps, elements, raw bytes and wire bytes of three steps."""
    model = gpu_model(group) if on_gpu else DistributedDataParallel(mlp())
    state = fastcomm.register(model, codec, warmup_steps=0)
    for step in range(3):
        backward(model, step)
    stats = state.stats
    assert stats.seconds_encode > 0
    assert stats.ratio > 1
    return stats.steps, stats.num_elements, stats.raw_bytes, stats.wire_bytes


def train(
    model: DistributedDataParallel, optimizer: torch.optim.Optimizer, steps: range
) -> list[str]:
    """Return the hash of all parameters after each step."""
    digests = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        digests.append(parameters_digest(model))
    return digests


def stop_and_resume(group: Group, codec: str, by_cpu: bool) -> None:
    """Go on from a checkpoint, which may have been loaded to the CPU."""

    def start() -> tuple[DistributedDataParallel, fastcomm.HookState, torch.optim.Optimizer]:
        # With find_unused_parameters DDP never rebuilds its buckets: equal residuals must give
        # equal bits.
        model = gpu_model(group, find_unused_parameters=True)
        state = fastcomm.register(model, codec, warmup_steps=0)
        return model, state, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    model, state, optimizer = start()
    train(model, optimizer, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), state.state_dict()))
    expected = train(model, optimizer, range(4, 8))

    model, state, optimizer = start()
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    if by_cpu:
        saved[2]["residuals"] = to_cpu(saved[2]["residuals"])
    state.load_state_dict(saved[2])
    assert train(model, optimizer, range(4, 8)) == expected
    assert {r.device.type for r in residuals(state).values()} == {GPU.type}


def flush_once(group: Group, codec: str) -> None:
    """All residuals arrive in one step."""
    model = gpu_model(group)
    state = fastcomm.register(model, codec, warmup_steps=0)
    for step in range(3):
        assert conserving_step(model, state, step) <= 1e-6
    state.flush()
    assert any(r.any() for r in residuals(state).values()), "nothing to flush"
    assert conserving_step(model, state, 3) <= 1e-6
    assert not any(r.any() for r in residuals(state).values())
    assert conserving_step(model, state, 4) <= 1e-6


def scale_gradients(group: Group, codec: str, poison: float) -> None:
    """Autocast and a GradScaler; the third step of four has a non-finite loss on one rank."""
    model = gpu_model(group)
    state = fastcomm.register(model, codec, warmup_steps=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(GPU.type, init_scale=1024.0, backoff_factor=0.5)
    for step in range(4):
        poisoned = step == 2
        before, scale_before = parameters_digest(model), scaler.get_scale()
        optimizer.zero_grad()
        with torch.autocast(GPU.type, torch.float16):
            loss = loss_of(model, step)
        if poisoned and dist.get_rank() == dist.get_world_size() - 1:
            loss = loss * poison
        scaler.scale(loss.to(GPU)).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()

        after = parameters_digest(model)
        assert (after == before) == poisoned, "only the poisoned step is to be skipped"
        assert scaler.get_scale() == (scale_before / 2 if poisoned else scale_before)
        assert all(r.isfinite().all() for r in residuals(state).values())
        assert identical_on_all_ranks(model), "some rank skipped and another did not"


def train_in_half_precision(group: Group, dtype: torch.dtype) -> bool:
    """Train a model of another dtype; return rank identity."""
    model = DistributedDataParallel(gpu_mlp(dtype=dtype), process_group=group)
    fastcomm.register(model, "int8")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = loss_of(model, step % 2)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3, "it does not learn"
    return identical_on_all_ranks(model)
