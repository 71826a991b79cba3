"""What ranks do in the tests of exchanges on a GPU; each function runs on every rank."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import fastcomm
from ledger import conservation_error, digest, gradient
from on_gpu import GPU, keep_stream_busy, new_stream
from promises import block_of, is_rotated

GROUP_TIMEOUT = timedelta(seconds=30)
NCCL_WAYS = ["distinct NCCL_HOSTID", "NCCL_MULTI_RANK_GPU_ENABLE"]
SIZES = (0, 1, 7, 513, 20_011)


def nccl_environment(rank: int, way: str) -> dict[str, str]:
    """Return what makes NCCL let several ranks share a GPU, by one of NCCL_WAYS."""
    if way == "distinct NCCL_HOSTID":
        return {"NCCL_HOSTID": f"fastcomm-rank-{rank}"}
    return {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}


def in_nccl_group(way: str, function: Callable[..., Any], /, *arguments: Any) -> Any:
    """Call ``function(group, *arguments)`` with an NCCL group of all ranks, all on this GPU."""
    os.environ.update(nccl_environment(dist.get_rank(), way))  # before NCCL looks
    torch.cuda.set_device(0)
    group = dist.new_group(backend="nccl", timeout=GROUP_TIMEOUT)
    return function(group, *arguments)


def device_of_rank(devices: list[str]) -> torch.device:
    """Return this rank's device."""
    return torch.device(devices[dist.get_rank()])


def reduce_twice(
    group: dist.ProcessGroup | None,
    devices: list[str],
    codec: str,
    algorithm: str,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
) -> tuple[list[str], float]:
    """Return the hashes of results and residuals of two steps, and the worst conservation."""
    device = device_of_rank(devices)
    digests, worst = [], 0.0
    block = block_of(codec) if is_rotated(codec) else 1
    for size in sizes:
        residual = torch.zeros(size, device=device)
        for step in range(2):
            mine = gradient(size, step).to(dtype)
            before = residual.to("cpu", copy=True)
            result = mine.to(device, copy=True)
            fastcomm.all_reduce(
                result, group=group, codec=codec, residual=residual, algorithm=algorithm
            )
            assert result.device.type == residual.device.type == device.type
            delivered, after = result.cpu(), residual.cpu()
            if dtype == torch.float32:  # else the result is rounded once more
                error = conservation_error(delivered, mine, before, after, block)
                worst = max(worst, error)
            digests += [digest(delivered), digest(after)]
    return digests, worst


def reduce_all_ways(
    group: dist.ProcessGroup | None,
    devices: list[str],
    codec: str,
    algorithms: list[str],
    sizes: tuple[int, ...] = SIZES,
) -> dict[str, tuple[list[str], float]]:
    """Return what reduce_twice() does by algorithm and dtype."""
    return {
        f"{algorithm}, {dtype}": reduce_twice(group, devices, codec, algorithm, dtype, sizes)
        for algorithm in algorithms
        for dtype in (torch.float32, torch.bfloat16)
    }


def reduce_asynchronously(group: dist.ProcessGroup | None, algorithm: str) -> None:
    """Several reductions under way, of tensors that a side stream writes late."""
    size, count = 300_007, 4
    ready = [gradient(size, step).to(GPU) for step in range(count)]
    # The same one after another, from the current stream.
    expected = []
    for tensor in ready:
        result = tensor.clone()
        fastcomm.all_reduce(result, group=group, codec="int8", algorithm=algorithm)
        expected.append(digest(result.cpu()))
    torch.cuda.synchronize()

    side = new_stream()
    with torch.cuda.stream(side):
        late = [torch.full((size,), 7.0, device=GPU) for _ in range(count)]
        keep_stream_busy()
        for tensor, values in zip(late, ready, strict=True):
            tensor.copy_(values)
        works = [
            fastcomm.all_reduce(
                tensor, group=group, async_op=True, codec="int8", algorithm=algorithm
            )
            for tensor in late
        ]
        for work in works:
            assert work is not None
            assert work.wait()
        copies = [tensor.clone() for tensor in late]  # on the stream that waited
    side.synchronize()
    assert [digest(copy.cpu()) for copy in copies] == expected
    for work in works:
        assert work is not None
        assert work.is_completed()


def step_with_poison(group: dist.ProcessGroup | None, codec: str, algorithm: str) -> None:
    """A NaN on one rank must reach all of them, and no residual."""
    for poison in (float("nan"), float("inf")):
        residual = 0.01 * gradient(5000, step=7).to(GPU)
        result = gradient(5000).to(GPU)
        if dist.get_rank() == dist.get_world_size() - 1:
            result[1300] = poison
        fastcomm.all_reduce(
            result, group=group, codec=codec, residual=residual, algorithm=algorithm
        )
        block = block_of(codec)
        first = 1300 // block * block
        spoilt = result.isfinite().logical_not().nonzero().flatten().tolist()
        assert spoilt == list(range(first, first + block)), f"{poison} by {algorithm}"
        assert residual.isfinite().all(), f"{poison} by {algorithm}"


def average_and_sum(group: dist.ProcessGroup | None, codec: str) -> float:
    """Return the largest difference between N times the average and the sum."""
    summed, averaged = gradient(10_007).to(GPU), gradient(10_007).to(GPU)
    fastcomm.all_reduce(summed, group=group, codec=codec)
    fastcomm.all_reduce(averaged, op=dist.ReduceOp.AVG, group=group, codec=codec)
    return float((averaged * dist.get_world_size() - summed).abs().max())
