"""While ranks connect, nothing lasts for ever: not even calls of a store whose host is stopped."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from fastcomm.rendezvous import Rendezvous
from faulty_ranks import PATIENCE_SECONDS, Report, faulty_ranks
from faulty_work import LONG, SHORT, check_peer_error, interrupt_when_it_waits
from made_group import made_group
from training import backward, mlp

# --- rank 0, which holds the store, is stopped ------------------------------------------------


def stop_rank_0() -> None:
    """Return, on the other ranks, when rank 0 is stopped."""
    pid = torch.tensor([os.getpid()])
    dist.broadcast(pid, 0)
    dist.barrier()  # it has sent it
    if dist.get_rank() == 0:
        while True:
            signal.pause()
    os.kill(int(pid), signal.SIGSTOP)
    status = Path(f"/proc/{int(pid)}/status")
    while "\nState:\tT" not in status.read_text():
        time.sleep(0.001)


def ready_use(use: str) -> Callable[[], object]:
    """Return what comes to use the store, or the other ranks, after all is ready for it."""
    model = DistributedDataParallel(mlp())
    if use == "first step":
        fastcomm.register(model, "int8")
    return {
        "all_reduce": lambda: fastcomm.all_reduce(torch.ones(10)),
        "register": lambda: fastcomm.register(model, "int8"),
        "first step": lambda: backward(model, 0),
    }[use]


USES = pytest.mark.parametrize("use", ["register", "first step", "all_reduce"])


def use_a_stopped_store(report: Report, use: str) -> None:
    call = ready_use(use)
    stop_rank_0()
    call()


@USES
def test_stopped_host_of_the_store_is_an_error_at_the_timeout(use: str) -> None:
    with faulty_ranks(3, SHORT) as ranks:
        ranks.start(use_a_stopped_store, use)
        what = "not complete after" if use == "first step" else "does not answer for"
        for rank in (1, 2):
            check_peer_error(ranks.outcome(rank), f"{what} {SHORT:g} s", "stopped, or cut off")


def interrupt_use_of_a_stopped_store(report: Report, use: str) -> None:
    call = ready_use(use)
    stop_rank_0()
    interrupt_when_it_waits()
    call()


@USES
def test_wait_for_a_stopped_host_of_the_store_can_be_interrupted(use: str) -> None:
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(interrupt_use_of_a_stopped_store, use)
        outcome = ranks.outcome(1)
        # The call of the store, which nothing can end but its host, is left.
        assert (outcome.exit_code, outcome.error) == (0, "KeyboardInterrupt"), outcome


# --- a rank cannot connect ----------------------------------------------------------------------


def connect_with_few_descriptors(report: Report) -> None:
    if dist.get_rank() == 1:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 5, limits[1]))
    try:
        fastcomm.all_reduce(torch.ones(10))
    finally:
        if dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_rank_without_descriptors_is_named_by_all_others_before_any_timeout() -> None:
    with faulty_ranks(3, LONG) as ranks:
        ranks.start(connect_with_few_descriptors)
        for rank in range(3):
            words = f"rank {rank} cannot connect to all others"
            check_peer_error(ranks.outcome(rank), words, "Too many open files")


def stop_this_process(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    threading.Event().wait()  # it is not stopped at once


def stop_while_connecting(report: Report) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 1:
            patch.setattr(fastcomm.group, "make_host_backends", stop_this_process)
        fastcomm.all_reduce(torch.ones(10))


def test_rank_that_is_stopped_while_it_connects_is_named_by_all_others() -> None:
    with faulty_ranks(3, SHORT) as ranks:
        ranks.start(stop_while_connecting)
        for rank in (0, 2):
            words = f"not complete after {SHORT:g} s, the timeout of the process group; rank 1: "
            check_peer_error(ranks.outcome(rank), words + "stopped, or cut off")


# --- a store that remembers ---------------------------------------------------------------------


class Meetings:
    """Ranks that are threads, and meet in one store time and again."""

    def __init__(self) -> None:
        self.store = HashStore()
        self.nonces: dict[int, str] = {}
        self._threads: list[threading.Thread] = []

    def start(self, *ranks: int) -> None:
        """Start some."""
        for rank in ranks:
            self._threads.append(threading.Thread(target=self._meet, args=(rank,)))
            self._threads[-1].start()

    def end(self) -> set[str]:
        """Return their nonces when all have ended."""
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        return set(self.nonces.values())

    def _meet(self, rank: int) -> None:
        self.nonces[rank] = Rendezvous(self.store, "name", rank, 3, PATIENCE_SECONDS).nonce


def test_ranks_agree_on_a_new_nonce_in_a_store_that_remembers_the_last_one() -> None:
    meetings = Meetings()
    meetings.start(0, 1, 2)
    (first,) = meetings.end()
    # Rank 1 comes so late that rank 0 has found, and answered, what rank 1 asked the last time.
    meetings.nonces.clear()
    meetings.start(0, 2)
    while meetings.store.get("name/answer/1").decode().endswith(first):
        time.sleep(0.001)
    meetings.start(1)
    (second,) = meetings.end()
    assert len(meetings.nonces) == 3
    assert second != first


def connect_groups_made_anew() -> None:
    port = torch.zeros(1, dtype=torch.int64)
    is_host = dist.get_rank() == 0
    if is_host:
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port.fill_(server.port)
    dist.broadcast(port, 0)
    # What c10d gives its default group, however often it is made anew under torchrun.
    store = PrefixStore("0/", TCPStore("127.0.0.1", int(port), is_master=False))
    gloo: Any = dist.ProcessGroupGloo
    for cycle, codec in enumerate(["fp32", "int8", "int4", "bf16", "fp16"]):
        options = gloo._Options()
        options._devices = [gloo.create_default_device()]
        # Its own addresses, which it does not find either if they are those of the last time, are
        # where they cannot be mistaken.
        group = made_group(store, PrefixStore(str(cycle), store), options)
        tensor = torch.ones(100)
        fastcomm.all_reduce(tensor, group=group, codec=codec)
        assert torch.allclose(tensor, torch.tensor(3.0), rtol=0.2)
    dist.barrier()  # the host of the store ends last


def test_groups_made_anew_over_one_store_connect() -> None:
    ranks.run(3, connect_groups_made_anew)
