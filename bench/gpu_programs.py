"""Parts of bench/gpu.py that measure: kernels, all-reduces, and the MNIST example."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_parts import REPOSITORY, PartFailedError, Row, rows_of_lines, run_command
from launch import Loopback, RanksFailedError, run_ranks

RING_SIZES = [2**20, 25_000_000]
RING_CODECS = ["fp32", "int8", "int4", "topk:0.01"]
# By which several ranks may share a GPU; see tests/gpu_exchanges.py.
_NCCL_WAYS = ["distinct NCCL_HOSTID", "NCCL_MULTI_RANK_GPU_ENABLE"]
_NCCL_SECONDS = 45.0
_DIGITS_EPOCHS = 20  # of 11 steps


def measure_kernels(log: Path, seconds: float, rows: list[Row]) -> None:
    """Run bench/gpu_kernels.py; what it measured before its time was up counts."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.jsonl"
        program = str(REPOSITORY / "bench" / "gpu_kernels.py")
        done = run_command([sys.executable, program, str(output)], seconds, log)
        rows += rows_of_lines(output)
    done.check("bench/gpu_kernels.py")


def _ring_settings(backend: str, way: str, seconds: float) -> dict[str, Any]:
    num_measured = len(RING_SIZES) * (len(RING_CODECS) + 1)
    return {
        "backend": backend,
        "nccl_way": way,
        "sizes": RING_SIZES,
        "codecs": RING_CODECS,
        "group_seconds": 20,
        "seconds_per_method": min(1.0, seconds / 4 / num_measured),
    }


def measure_rings(world_size: int, seconds: float, rows: list[Row]) -> None:
    """All-reduces of ranks that share the GPUs: over gloo, then over NCCL if that works."""
    end = time.monotonic() + seconds
    failures = []
    settings = _ring_settings("gloo", "", seconds)
    try:
        rows += run_ranks(Loopback(world_size), "gpu_ring_ranks.py", settings, seconds)
    except RanksFailedError as failure:
        failures.append(f"gloo: {failure}")
        rows.append(_failure("gloo", "", str(failure)))
    for way in _NCCL_WAYS:
        left = min(end - time.monotonic(), _NCCL_SECONDS)
        if left < 10:
            rows.append(_failure("nccl", way, "no time was left"))
            break
        settings = _ring_settings("nccl", way, seconds)
        try:
            rows += run_ranks(Loopback(world_size), "gpu_ring_ranks.py", settings, left)
            break
        except RanksFailedError as failure:  # on one GPU it may: that is a finding, not a fault
            rows.append(_failure("nccl", way, str(failure)))
    if failures:
        raise PartFailedError("; ".join(failures))


def _failure(backend: str, way: str, message: str) -> Row:
    return {
        "benchmark": "gpu_allreduce_failure",
        "backend": backend,
        "way": way,
        "failure": message,
    }


def train_mnist(data_root: Path | None, log: Path, seconds: float, rows: list[Row]) -> None:
    """Train the example on the GPU with two ranks: int8, then plain DDP."""
    end = time.monotonic() + seconds
    data = ["--data", "digits", "--epochs", str(_DIGITS_EPOCHS)]
    if data_root is not None:
        data = ["--data-root", str(data_root), "--epochs", "1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--local-addr", "127.0.0.1"]
    script = [*torchrun, "--nproc-per-node=2", "examples/mnist_ddp.py", "--device", "cuda"]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        for codec in ("int8", "none"):
            options = ["--codec", codec, *data, "--json", str(result)]
            done = run_command([*script, *options], end - time.monotonic(), log)
            done.check(f"examples/mnist_ddp.py --codec {codec}")
            run = json.loads(result.read_text())["run"]
            rows.append({"benchmark": "gpu_mnist", "seconds": done.seconds, **run})
