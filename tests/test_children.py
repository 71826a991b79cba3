"""Processes that a rank starts live on without it, and keep what is theirs, and only that."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import fastcomm.gloo
import fastcomm.own_store
from fastcomm.group import _abort_all
from fastcomm.sockets import Snapshot
from faulty_ranks import PATIENCE_SECONDS, Outcome, Report, faulty_ranks
from faulty_work import LONG, check_exchange_error, reduce_for_ever
from training import backward, mlp


def fork_and_reduce_for_ever(report: Report) -> None:
    fastcomm.all_reduce(torch.ones(10))
    if dist.get_rank() == 1:
        child = os.fork()  # as a DataLoader does
        if child == 0:
            signal.pause()
        report(f"child {child}")
    reduce_for_ever(report, 1000, "ring", "int8")


def test_killed_rank_is_named_although_a_process_that_it_forked_lives_on() -> None:
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(fork_and_reduce_for_ever)
        child = int(ranks.wait_for(1, "child ").removeprefix("child "))
        try:
            ranks.wait_for(1, "step 3")
            ranks.send_signal(1, signal.SIGKILL)
            check_exchange_error(ranks.outcome(0), "rank 1 has ended")
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


# Children that a launcher of other programs makes: they keep what they can inherit.
STARTS: dict[str, Callable[[str], object]] = {
    "system": lambda command: os.system(f"{command} &"),
    "popen": lambda command: subprocess.Popen(command, shell=True, close_fds=False),
}


def start_a_program_and_reduce_for_ever(report: Report, how: str, pid_file: str) -> None:
    fastcomm.all_reduce(torch.ones(10))
    if dist.get_rank() == 1:
        program = f"echo $$ > {pid_file}; exec sleep {PATIENCE_SECONDS:g} > /dev/null 2>&1"
        STARTS[how](f"sh -c '{program}'")
    reduce_for_ever(report, 1000, "ring", "int8")


@pytest.mark.parametrize("how", list(STARTS))
def test_killed_rank_is_named_although_a_program_that_it_started_lives_on(
    how: str, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(start_a_program_and_reduce_for_ever, how, str(pid_file))
        ranks.wait_for(1, "step 3")
        while not (pid_file.exists() and pid_file.read_text().strip()):
            time.sleep(0.001)
        child = int(pid_file.read_text())
        try:
            ranks.send_signal(1, signal.SIGKILL)
            check_exchange_error(ranks.outcome(0), "rank 1 has ended")
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def connect_to_itself() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


class InterruptedSnapshot(Snapshot):
    """Another thread opens sockets as soon as fastcomm has seen which ones there are."""

    pairs: ClassVar[list[tuple[socket.socket, socket.socket]]] = []

    def __init__(self, is_empty: bool = False) -> None:
        super().__init__(is_empty)
        self.pairs.extend([connect_to_itself(), socket.socketpair()])


def fork_with_sockets_of_its_own(report: Report) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in (fastcomm.gloo, fastcomm.own_store):
            patch.setattr(module, "Snapshot", InterruptedSnapshot)
        fastcomm.all_reduce(torch.ones(10))
    assert InterruptedSnapshot.pairs
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            for one, other in InterruptedSnapshot.pairs:
                one.send(b"x")
                other.recv(1)
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    while InterruptedSnapshot.pairs:
        for each in InterruptedSnapshot.pairs.pop():
            each.close()


def test_forked_process_keeps_sockets_that_the_program_opened_while_ranks_connected() -> None:
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(fork_with_sockets_of_its_own)
        for rank in range(2):
            assert ranks.outcome(rank) == Outcome(0)


def fork_a_child_that_ends(report: Report) -> None:
    model = DistributedDataParallel(mlp())
    fastcomm.register(model, "int8")
    backward(model, 0)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_abort_all)  # what an interpreter does when it ends
    child.start()
    child.join()
    assert child.exitcode == 0
    backward(model, 1)


def test_forked_process_that_ends_takes_nothing_along() -> None:
    with faulty_ranks(2, LONG) as ranks:
        ranks.start(fork_a_child_that_ends)
        for rank in range(2):
            assert ranks.outcome(rank) == Outcome(0)
