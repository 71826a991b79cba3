"""A rank is stopped, cut off, or busy: the others name it at the timeout of the process group."""

import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from faulty_ranks import FaultyRanks, Report, Side, faulty_ranks
from faulty_work import (
    SHORT,
    check_exchange_error,
    check_peer_error,
    reduce_for_ever,
    report_step,
)
from training import mlp

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
from shaped_link import ShapedLink, can_shape


def check_that_silence_is_an_error(ranks: FaultyRanks, silent: int) -> None:
    outcomes = {rank: ranks.outcome(rank) for rank in range(ranks.num_ranks) if rank != silent}
    for outcome in outcomes.values():
        check_exchange_error(outcome, f"rank {silent}: not complete after {SHORT:g} s", "answer")


def reduce_two_at_a_time_for_ever(report: Report) -> None:
    tensors = [torch.ones(100_000), torch.ones(100_000)]
    step = 0
    while True:
        report_step(report, step)
        works = [fastcomm.all_reduce(t, async_op=True, algorithm="ring") for t in tensors]
        for work in works:
            assert work is not None
            work.wait()
        step += 1


def test_stopped_rank_is_named_by_all_others_that_wait_for_several_exchanges() -> None:
    with faulty_ranks(4, SHORT) as ranks:
        ranks.start(reduce_two_at_a_time_for_ever)
        ranks.wait_for(2, "step 3")
        ranks.send_signal(2, signal.SIGSTOP)
        check_that_silence_is_an_error(ranks, 2)


@pytest.mark.parametrize("algorithm", ["ring", "gather", "scatter_gather"])
def test_stopped_rank_is_named_by_all_others_after_the_timeout(algorithm: str) -> None:
    with faulty_ranks(4, SHORT) as ranks:
        ranks.start(reduce_for_ever, 1_000_000, algorithm, "int8")
        ranks.wait_for(2, "step 3")
        ranks.send_signal(2, signal.SIGSTOP)
        check_that_silence_is_an_error(ranks, 2)
        ranks.send_signal(2, signal.SIGCONT)
        check_peer_error(ranks.outcome(2))


def test_rank_that_is_cut_off_is_named_by_all_others_after_the_timeout() -> None:
    if not can_shape().possible:
        pytest.skip(can_shape().reason)
    with ShapedLink(3, None) as link:
        sides = [Side(link.namespace(rank), link.environment(rank)) for rank in range(3)]
        with faulty_ranks(3, SHORT, sides) as ranks:
            ranks.start(reduce_for_ever, 1_000_000, "ring", "int8")
            ranks.wait_for(1, "step 3")
            link.cut(1)
            check_that_silence_is_an_error(ranks, 1)
            check_exchange_error(ranks.outcome(1), f"not complete after {SHORT:g} s")


def compute_longer_than_the_others_wait(report: Report) -> None:
    tensor = torch.ones(100)
    fastcomm.all_reduce(tensor)
    if dist.get_rank() == 1:
        time.sleep(2 * SHORT)
    fastcomm.all_reduce(tensor)


def test_rank_that_does_something_else_is_named_and_learns_of_it() -> None:
    with faulty_ranks(2, SHORT) as ranks:
        ranks.start(compute_longer_than_the_others_wait)
        check_exchange_error(ranks.outcome(0), "from rank 1: not complete", "something else")
        check_peer_error(ranks.outcome(1), "from rank 1: not complete", "something else")


def compare_settings_without_the_last_rank(report: Report) -> None:
    state = fastcomm.register(DistributedDataParallel(mlp()))
    assert state._sync.group is not None
    if dist.get_rank() == 2:
        time.sleep(2 * SHORT)
    else:
        state._sync.group.check_agreement({"codec": "int8"})


def test_rank_that_does_not_compare_settings_is_named_by_all_others() -> None:
    with faulty_ranks(3, SHORT) as ranks:
        ranks.start(compare_settings_without_the_last_rank)
        for rank in (0, 1):
            words = f"from rank 2: not complete after {SHORT:g} s"
            check_peer_error(ranks.outcome(rank), "comparing settings ", words, "something else")
