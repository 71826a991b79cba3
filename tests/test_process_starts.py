"""Ranks may be started in any way, and with PyTorch's checks of collectives switched on."""

import multiprocessing
import queue
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
