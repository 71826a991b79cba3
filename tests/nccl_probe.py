"""Whether NCCL lets several ranks share a GPU: a rank that sends to the others and adds up.

python tests/nccl_probe.py RANK WORLD_SIZE STORE_FILE WAY
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from gpu_exchanges import NCCL_WAYS, nccl_environment

TIMEOUT_SECONDS = 40.0


def probe(num_ranks: int, way: str) -> str:
    """Return nothing if so many ranks can share the GPU in this way, else why not."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"rank{rank}.txt" for rank in range(num_ranks)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                arguments = [str(rank), str(num_ranks), f"{folder}/store", way]
                with log.open("w") as output:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, __file__, *arguments],
                            env={**os.environ, **nccl_environment(rank, way)},
                            stdout=output,
                            stderr=output,
                        )
                    )
            return _outcome(processes, logs)
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _outcome(processes: list[subprocess.Popen[bytes]], logs: list[Path]) -> str:
    end = time.monotonic() + TIMEOUT_SECONDS
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            break
        if time.monotonic() > end:
            return f"no answer within {TIMEOUT_SECONDS:g} s"
        time.sleep(0.05)
    for process, log in zip(processes, logs, strict=True):
        if process.returncode:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
            telling = [line for line in lines if "Error" in line or "uplicate GPU" in line]
            return (telling or lines)[-1].strip()[:300]
    return ""


def working_way(num_ranks: int) -> tuple[str, str]:
    """Return how so many ranks can share the GPU, and why not if they can not."""
    refusals = []
    for way in NCCL_WAYS:
        refusal = probe(num_ranks, way)
        if not refusal:
            return way, ""
        refusals.append(f"{way}: {refusal}")
    return "", "; ".join(refusals)


def main() -> None:
    """Be one rank."""
    rank, num_ranks = int(sys.argv[1]), int(sys.argv[2])
    torch.cuda.set_device(0)
    dist.init_process_group(
        "nccl",
        init_method=f"file://{sys.argv[3]}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    total = torch.full((1000,), float(rank + 1), device="cuda")
    dist.all_reduce(total)
    assert (total == num_ranks * (num_ranks + 1) / 2).all()
    arrived = torch.zeros(1000, device="cuda")
    if num_ranks > 1:
        operations = [
            dist.P2POp(dist.isend, total + rank, (rank + 1) % num_ranks),
            dist.P2POp(dist.irecv, arrived, (rank - 1) % num_ranks),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        assert (arrived == total + (rank - 1) % num_ranks).all()
    torch.cuda.synchronize()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
