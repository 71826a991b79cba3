"""What takes minutes: a hundred kills, thousands of steps and of connections.

`make stress` runs it.

The first lines that each test prints are what docs/reliability.md quotes.
"""

import gc
import os
import random
import signal
import statistics
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from faulty_ranks import faulty_ranks
from faulty_work import check_exchange_error, reduce_for_ever, train_for_ever
from ledger import digest
from training import backward, mlp

pytestmark = [pytest.mark.stress, pytest.mark.timeout(900)]

LONG = 1000.0


def test_a_hundred_ranks_killed_at_random() -> None:
    # Whatever the victim does when it happens: encode, wait, or be half-way through a message.
    seed = int.from_bytes(os.urandom(4), "big")
    choice = random.Random(seed)
    print(f"\nseed {seed}")
    seconds = []
    for _ in range(100):
        num_ranks = choice.choice([2, 2, 3, 4, 5])
        victim = choice.randrange(num_ranks)
        with faulty_ranks(num_ranks, LONG) as group:
            if choice.random() < 0.3:
                group.start(train_for_ever)
            else:
                group.start(
                    reduce_for_ever,
                    int(10 ** choice.uniform(2, 7)),
                    choice.choice(["ring", "gather", "scatter_gather"]),
                    choice.choice(["fp32", "int8", "topk:0.01"]),
                )
            # The ranks are connected, and DDP itself exchanges nothing any more.
            group.wait_for(victim, f"step {choice.randrange(2, 6)}")
            time.sleep(choice.uniform(0, 0.1))
            killed = group.send_signal(victim, signal.SIGKILL)
            for rank in set(range(num_ranks)) - {victim}:
                outcome = group.outcome(rank)
                check_exchange_error(outcome, f"rank {victim} has ended")
                seconds.append(outcome.seconds - killed)
    print(
        f"100 kills, {len(seconds)} errors on the other ranks, seconds from kill to error: "
        f"median {statistics.median(seconds):.3f}, worst {max(seconds):.3f}"
    )
    assert max(seconds) < 1


# --- a long run --------------------------------------------------------------------------------


def memory_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reduce_many_times(codec: str, num_steps: int) -> tuple[float, str, int]:
    """Return the worst violation of conservation over all steps, a hash of all results, growth."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    num_elements = 5000
    residual = torch.zeros(num_elements)
    given = torch.zeros(num_elements, dtype=torch.float64)
    delivered = torch.zeros(num_elements, dtype=torch.float64)
    all_digests = ""
    memory = 0
    for step in range(num_steps):
        tensor = torch.randn(num_elements, generator=generator)
        given += tensor.double()
        exact = tensor.double()
        fastcomm.all_reduce(tensor, codec=codec, residual=residual)
        delivered += tensor.double()
        if codec == "fp32" and step % 10 == 0:
            dist.all_reduce(exact)
            torch.testing.assert_close(tensor.double(), exact, rtol=1e-5, atol=1e-5)
        if step % 100 == 0:
            all_digests = digest(tensor) + all_digests[:100]
        if step == num_steps // 2:
            memory = memory_bytes()
    sums = torch.stack([given, residual.double()])
    dist.all_reduce(sums)
    # The sums of both sides are of the size of a random walk; so is what rounding adds up to.
    error = ((delivered + sums[1] - sums[0]).abs().max() / sums[0].abs().max()).item()
    return error, all_digests, memory_bytes() - memory


@pytest.mark.parametrize("codec", ["fp32", "int8", "sign", "topk:0.01"])
def test_ten_thousand_steps_lose_nothing_and_keep_the_ranks_identical(codec: str) -> None:
    num_steps = 10_000
    answers = ranks.run_for(600, 3, reduce_many_times, codec, num_steps)
    worst = max(error for error, _, _ in answers)
    growth = max(bytes_ for _, _, bytes_ in answers)
    print(f"\n{codec}: {num_steps} steps, 3 ranks: lost {worst:.1e}, memory grew by {growth} bytes")
    assert worst < 1e-5
    assert len({digests for _, digests, _ in answers}) == 1
    assert growth < 8_000_000, "a tensor or message of each step would be 100 MB"


# --- many short ones ---------------------------------------------------------------------------


def threads_and_descriptors() -> tuple[int, int]:
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def connect_many_times(num_cycles: int) -> tuple[int, int, tuple[int, int], tuple[int, int]]:
    """Return the growth of memory in the second half, and threads and files before and after."""
    memory = 0
    before = (0, 0)
    gc.collect()
    gc.freeze()  # to look at all of torch's objects each time would take most of the time
    for cycle in range(num_cycles):
        model = DistributedDataParallel(mlp())
        fastcomm.register(model, "int8")
        backward(model, 0)
        backward(model, 1)
        del model
        gc.collect()
        if cycle == num_cycles // 2:
            memory, before = memory_bytes(), threads_and_descriptors()
    gc.unfreeze()
    return memory_bytes() - memory, num_cycles, before, threads_and_descriptors()


def test_a_thousand_models_are_registered_and_dropped_without_a_leak() -> None:
    for growth, num_cycles, before, after in ranks.run_for(600, 2, connect_many_times, 1000):
        print(f"\n{num_cycles} cycles: memory grew by {growth} bytes, threads and files {after}")
        assert growth < 5_000_000
        assert after == before
