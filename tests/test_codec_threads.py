"""`codec_threads` changes how fast, and nothing else."""

import os

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from fastcomm import _C
from ledger import digest, gradient
from promises import CODECS
from training import backward, mlp, residuals

ALGORITHMS = _C.algorithm_names()
THREADS = (1, 2, 3)
SIZE = 300_001  # some tasks for each thread, the last one odd


def reduce_with_threads(codec: str) -> None:
    for algorithm in ALGORITHMS:
        outcomes = []
        for threads in (*THREADS, None):
            residual = 0.1 * gradient(SIZE, step=1)
            result = gradient(SIZE)
            fastcomm.all_reduce(
                result, codec=codec, residual=residual, algorithm=algorithm, codec_threads=threads
            )
            outcomes.append((digest(result), digest(residual)))
        assert len(set(outcomes)) == 1, algorithm


@pytest.mark.parametrize("codec", CODECS)
def test_all_reduce_gives_the_same_bits_for_any_number_of_threads(codec: str) -> None:
    ranks.run(2, reduce_with_threads, codec)


def start_many_with_threads() -> None:
    """Exchanges in flight share the threads."""
    outcomes = []
    for threads in THREADS:
        tensors = [gradient(SIZE, step) for step in range(6)]
        works = [
            fastcomm.all_reduce(tensor, async_op=True, codec_threads=threads) for tensor in tensors
        ]
        for work in works:
            assert work is not None
            work.wait()
        outcomes.append(tuple(digest(tensor) for tensor in tensors))
    assert len(set(outcomes)) == 1


def test_exchanges_in_flight_share_the_threads() -> None:
    ranks.run(2, start_many_with_threads)


def hook_with_threads(threads: int | None) -> list[str]:
    # 3.9 MB in two buckets, which are in flight together.
    model = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1)
    state = fastcomm.register(model, "int8", codec_threads=threads)
    digests = []
    for step in range(3):
        found = backward(model, step)
        digests.append(digest(torch.cat([g.flatten() for g in found.values()])))
    return [*digests, *(digest(r) for r in residuals(state).values())]


def test_hook_gives_the_same_bits_for_any_number_of_threads() -> None:
    expected = ranks.run(2, hook_with_threads, 1)
    for threads in (3, None):
        assert ranks.run(2, hook_with_threads, threads) == expected


def different_threads_on_ranks() -> str:
    result = gradient(SIZE)
    fastcomm.all_reduce(result, codec_threads=1 + torch.distributed.get_rank())
    return digest(result)


def test_ranks_may_have_different_numbers_of_threads() -> None:
    first, second = ranks.run(2, different_threads_on_ranks)
    assert first == second


def count_threads() -> None:
    tensor = torch.ones(10)
    for threads in (2, 3):
        fastcomm.all_reduce(tensor, codec_threads=threads)
    before = len(os.listdir("/proc/self/task"))
    for call in range(20):
        fastcomm.all_reduce(tensor, codec_threads=2 + call % 2)
    assert len(os.listdir("/proc/self/task")) <= before


def test_changing_the_number_of_threads_leaves_none_behind() -> None:
    ranks.run(1, count_threads)


@pytest.mark.parametrize("threads", [0, -1])
def test_fewer_than_one_thread_is_refused(threads: int) -> None:
    ranks.run(1, refuse_threads, threads)


def refuse_threads(threads: int) -> None:
    expected = f"codec_threads {threads} is less than 1"
    with pytest.raises(fastcomm.ArgumentError, match=expected):
        fastcomm.all_reduce(torch.ones(3), codec_threads=threads)
    with pytest.raises(fastcomm.ArgumentError, match=expected):
        fastcomm.HookState(codec_threads=threads)
