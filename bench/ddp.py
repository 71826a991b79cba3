"""Seconds per gradient synchronization under DDP, for several hooks side by side.

    python bench/ddp.py --megabytes 100 --methods none,fp16,int8,int4,topk:0.01 --json out.json

Starts the ranks itself, on this host and over loopback. The model does next to no computing: its
gradients are given tensors, so that a backward pass is the synchronization and little else.
Methods take turns in the same processes; each figure is the median of the slowest rank's times.
Correctness is checked on the gradients of the timed passes: their error against the exact average
(a compressed method's includes what error feedback still holds back), and that all ranks hold the
same bits.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from measure import commit


@dataclass(frozen=True)
class Row:
    """One method's result."""

    method: str
    world_size: int
    gradient_bytes: int
    seconds_median: float
    seconds_min: float
    ratio_to_fp16: float
    wire_bytes_per_step: int
    relative_error: float
    identical: bool


class GivenGradients(torch.nn.Module):
    """A model whose gradients are given tensors: its loss is their dot product with the weights."""

    def __init__(self, gradients: list[torch.Tensor]) -> None:
        super().__init__()
        self.gradients = gradients
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros_like(g)) for g in gradients
        )

    def forward(self) -> torch.Tensor:
        """Return the loss, a scalar."""
        dots = [
            torch.dot(w.flatten(), g.flatten())
            for w, g in zip(self.weights, self.gradients, strict=True)
        ]
        return torch.stack(dots).sum()


def make_model(
    method: str, gradients: list[torch.Tensor]
) -> tuple[DistributedDataParallel, fastcomm.HookState | None]:
    """Return a DDP model with the hook of ``method``, and fastcomm's state if it is ours."""
    model = DistributedDataParallel(GivenGradients(gradients), gradient_as_bucket_view=True)
    if method == "none":
        return model, None
    if method in ("fp16", "bf16-hook"):
        hook = (
            default_hooks.fp16_compress_hook
            if method == "fp16"
            else default_hooks.bf16_compress_hook
        )
        model.register_comm_hook(None, hook)
        return model, None
    return model, fastcomm.register(model, codec=method)


def slowest(seconds: float) -> float:
    """Return the largest of all ranks' values."""
    value = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value)


def is_identical(tensor: torch.Tensor) -> bool:
    """Return whether all ranks hold the same bits."""
    of_rank_0 = tensor.clone()
    dist.broadcast(of_rank_0, 0)
    same = torch.tensor([torch.equal(tensor.view(torch.int32), of_rank_0.view(torch.int32))])
    dist.all_reduce(same, op=dist.ReduceOp.MIN)
    return bool(same)


def run_rank(arguments: argparse.Namespace) -> list[Row]:
    """Measure every method; called on each rank."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    num_elements = arguments.megabytes * 10**6 // 4 // arguments.parameters
    generator = torch.Generator().manual_seed(rank)
    gradients = [
        torch.randn(num_elements // 1000, 1000, generator=generator)
        for _ in range(arguments.parameters)
    ]
    exact = [g.clone() for g in gradients]
    for average in exact:
        dist.all_reduce(average)
        average /= world_size
    models = {method: make_model(method, gradients) for method in arguments.methods}
    seconds: dict[str, list[float]] = {method: [] for method in models}
    for repetition in range(arguments.warmup + arguments.repetitions):
        for method, (model, _) in models.items():
            model.zero_grad()
            loss = model()
            dist.barrier()
            start = time.perf_counter()
            loss.backward()
            elapsed = slowest(time.perf_counter() - start)
            if repetition >= arguments.warmup:
                seconds[method].append(elapsed)
    rows = []
    gradient_bytes = sum(g.numel() * 4 for g in gradients)
    for method, (model, state) in models.items():
        results = [p.grad for p in model.module.weights]
        error = sum((r - e).double().square().sum() for r, e in zip(results, exact, strict=True))
        norm = sum(e.double().square().sum() for e in exact)
        uncompressed = 2 * (world_size - 1) * gradient_bytes // world_size
        rows.append(
            Row(
                method=method,
                world_size=world_size,
                gradient_bytes=gradient_bytes,
                seconds_median=statistics.median(seconds[method]),
                seconds_min=min(seconds[method]),
                ratio_to_fp16=statistics.median(
                    [
                        a / b
                        for a, b in zip(
                            seconds[method], seconds.get("fp16", seconds[method]), strict=True
                        )
                    ]
                ),
                wire_bytes_per_step=state.stats.wire_bytes // state.stats.steps
                if state
                else uncompressed // (1 if method == "none" else 2),
                relative_error=float((error / norm) ** 0.5),
                identical=all(is_identical(r) for r in results),
            )
        )
    dist.destroy_process_group()
    return rows


def print_table(rows: list[Row]) -> None:
    """Print the rows for people."""
    table = Table(
        title=f"{rows[0].gradient_bytes / 1e6:.0f} MB of f32 gradients, "
        f"{rows[0].world_size} ranks, loopback, {platform.processor() or platform.machine()}"
    )
    for column in (
        "method",
        "median ms",
        "min ms",
        "time / fp16 hook",
        "wire MB/step",
        "rel. error",
        "identical",
    ):
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.seconds_median * 1e3:.1f}",
            f"{row.seconds_min * 1e3:.1f}",
            f"{row.ratio_to_fp16:.2f}",
            f"{row.wire_bytes_per_step / 1e6:.2f}",
            f"{row.relative_error:.1e}",
            "yes" if row.identical else "NO",
        )
    Console().print(table)


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100, help="gradient size in MB")
    parser.add_argument("--parameters", type=int, default=5, help="number of equal parameters")
    parser.add_argument(
        "--methods", default="none,fp16,int8,int4,topk:0.01", type=lambda text: text.split(",")
    )
    parser.add_argument("--world", type=int, default=2, help="number of ranks")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [
            subprocess.Popen(
                [sys.executable, *sys.argv],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(arguments.world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
            )
            for rank in range(arguments.world)
        ]
        # A rank that fails ends the others, which would wait for it.
        while any(rank.poll() is None for rank in ranks) and not any(r.returncode for r in ranks):
            time.sleep(0.1)
        failed = [rank.returncode for rank in ranks if rank.returncode]
        for rank in ranks:
            rank.terminate()
        sys.exit(1 if failed else 0)
    rows = run_rank(arguments)
    if os.environ["RANK"] != "0":
        return
    print_table(rows)
    if arguments.json:
        facts = {
            "machine": f"{platform.node()} {platform.platform()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "commit": commit(),
        }
        arguments.json.write_text(json.dumps([{**asdict(row), **facts} for row in rows], indent=1))


if __name__ == "__main__":
    main()
