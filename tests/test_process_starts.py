"""Ranks may be started in any way, in a notebook or by SLURM, and with PyTorch's checks on."""

import multiprocessing
import os
import queue
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import backward, mlp

NUM_RANKS = 2


def train(rank: int, store: str, digests: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=NUM_RANKS)
    model = DistributedDataParallel(mlp())
    fastcomm.register(model, "int8", codec_threads=2)
    gradients = [backward(model, step) for step in range(2)][-1]
    digests.put(float(sum(gradient.double().sum() for gradient in gradients.values())))
    dist.destroy_process_group()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_ranks_of_any_start_method_train(method: str) -> None:
    # What a fork inherits: codecs and their threads have been used.
    fastcomm.codec("int8").encode(torch.randn(1_000_000))
    context: Any = multiprocessing.get_context(method)
    digests = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=train, args=(rank, str(Path(folder) / "store"), digests))
            for rank in range(NUM_RANKS)
        ]
        for process in processes:
            process.start()
        try:
            assert digests.get(timeout=60) == digests.get(timeout=60)
        except queue.Empty:
            pytest.fail(f"the ranks ended with {[process.exitcode for process in processes]}")
        finally:
            for process in processes:
                process.join(10)
                process.kill()
    assert [process.exitcode for process in processes] == [0] * NUM_RANKS


# Not DDP: under this setting, torch 2.13's own constructor crashes, with or without fastcomm.
CHECKED = """
import torch, torch.distributed as dist, fastcomm
dist.init_process_group("gloo")
assert dist.get_debug_level() == dist.DebugLevel.DETAIL
for algorithm in ("ring", "gather", "scatter_gather"):
    for num_elements in (10, 100_000):
        tensor = torch.ones(num_elements)
        fastcomm.all_reduce(tensor, algorithm=algorithm, codec="fp32")
        assert torch.equal(tensor, torch.full((num_elements,), 3.0))
dist.destroy_process_group()
"""


def test_all_reduce_works_where_torch_checks_collectives(tmp_path: Path) -> None:
    ended = ranks.run_script(
        CHECKED, tmp_path, num_ranks=3, environment={"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}
    )
    assert ended.returncode == 0, ended.stderr


# A cell of a notebook: what it defines is in no file, and ranks are forks of its process, as
# accelerate.notebook_launcher makes them.
CELLS = """
import sys, torch, torch.distributed as dist, fastcomm
from torch.nn.parallel import DistributedDataParallel

def train(rank, num_ranks, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    model = DistributedDataParallel(torch.nn.Linear(100, 100))
    state = fastcomm.register(model, codec="int4")
    model(torch.randn(8, 100)).square().mean().backward()
    assert num_ranks == 1 or state.stats.ratio > 4
    dist.destroy_process_group()

torch.multiprocessing.start_processes(
    train, args=(2, sys.argv[1]), nprocs=2, start_method="fork"
)
train(0, 1, sys.argv[2])
train(0, 1, sys.argv[3])  # a cell is run again
print("trained")
"""


def test_a_notebook_trains(tmp_path: Path) -> None:
    stores = [str(tmp_path / f"store{index}") for index in range(3)]
    ended = subprocess.run(
        [sys.executable, "-", *stores],
        input=CELLS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "trained\n"), ended.stderr


# As srun starts a task: there is no launcher, and no RANK.
TASK = """
import os, torch, torch.distributed as dist, fastcomm
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group(
    "gloo",
    init_method=f"tcp://{os.environ['SLURM_LAUNCH_NODE_IPADDR']}:{os.environ['PORT']}",
    rank=int(os.environ["SLURM_PROCID"]),
    world_size=int(os.environ["SLURM_NTASKS"]),
)
model = DistributedDataParallel(torch.nn.Linear(100, 100))
state = fastcomm.register(model, codec="int4")
model(torch.randn(8, 100)).square().mean().backward()
assert state.stats.ratio > 4
dist.destroy_process_group()
"""


def test_tasks_of_slurm_train(tmp_path: Path) -> None:
    script = tmp_path / "task.py"
    script.write_text(TASK)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    tasks = []
    for rank in range(NUM_RANKS):
        environment = {
            "SLURM_JOB_ID": "1",
            "SLURM_NTASKS": str(NUM_RANKS),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
            "PORT": str(port),
        }
        command = [sys.executable, str(script)]
        tasks.append(subprocess.Popen(command, env={**os.environ, **environment}))
    assert [task.wait(timeout=120) for task in tasks] == [0] * NUM_RANKS
