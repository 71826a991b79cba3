"""Ranks in processes of their own, to be killed, stopped or cut off while they synchronize.

The processes are forked from one that has imported torch, so that a hundred runs take minutes. As
users have it, the store is a TCPStore, which rank 0 holds.
Times are those of the monotonic clock, which all processes of a machine share.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# None of the tests takes so long unless a rank hangs.
PATIENCE_SECONDS = 60.0

Report = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """A rank's side of a link."""

    namespace: str
    environment: dict[str, str]

    def enter(self) -> None:
        """Move this process there."""
        os.environ.update(self.environment)
        with open(f"/run/netns/{self.namespace}") as namespace:  # os.setns: from Python 3.12 on
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")


@dataclass(frozen=True)
class Outcome:
    """What became of a rank."""

    exit_code: int | None  # None: it hung, and was killed
    error: str = ""  # name of the class of its exception; empty: none
    message: str = ""
    seconds: float = 0.0  # when the exception was raised
    left: tuple[str, ...] = ()  # threads and sockets that were still there when all was dropped


class FaultyRanks:
    """Processes that form a gloo group and run a function, each with a way to report progress."""

    def __init__(self, num_ranks: int, timeout_seconds: float, sides: list[Side] | None) -> None:
        self.num_ranks = num_ranks
        self._sides: Sequence[Side | None] = sides or [None] * num_ranks
        self._timeout = timedelta(seconds=timeout_seconds)
        host = sides[0].environment["MASTER_ADDR"] if sides else "127.0.0.1"
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._store = f"tcp://{host}:{server.getsockname()[1]}"
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def start(self, function: Callable[..., None], *args: Any) -> None:
        """Start ``function(report, *args)`` on every rank."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "fastcomm", __name__])
        for rank in range(self.num_ranks):
            ours, theirs = context.Pipe()
            group = (rank, self.num_ranks, self._store, self._timeout)
            arguments = (theirs, self._sides[rank], group, function, args)
            process = context.Process(target=_run_rank, args=arguments)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def wait_for(self, rank: int, beginning: str) -> str:
        """Return the first report of ``rank`` that begins like this."""
        connection = self._connections[rank]
        while connection.poll(PATIENCE_SECONDS):
            report = connection.recv()
            assert isinstance(report, str), f"rank {rank}, instead of {beginning!r}: {report}"
            if report.startswith(beginning):
                return report
        raise TimeoutError(f"rank {rank} did not report {beginning!r}")

    def send_signal(self, rank: int, number: signal.Signals) -> float:
        """Send a signal to a rank, and return when."""
        pid = self._processes[rank].pid
        moment = time.monotonic()
        os.kill(pid, number)
        return moment

    def outcome(self, rank: int) -> Outcome:
        """Wait for the end of a rank."""
        outcome = Outcome(None)
        with contextlib.suppress(EOFError, ConnectionResetError):
            while self._connections[rank].poll(PATIENCE_SECONDS):
                report = self._connections[rank].recv()
                if isinstance(report, Outcome):
                    outcome = report
        process = self._processes[rank]
        process.join(PATIENCE_SECONDS)
        return Outcome(
            process.exitcode, outcome.error, outcome.message, outcome.seconds, outcome.left
        )

    def end(self) -> None:
        """End all processes, whatever they do."""
        for process in self._processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def faulty_ranks(
    num_ranks: int, timeout_seconds: float, sides: list[Side] | None = None
) -> Iterator[FaultyRanks]:
    """Make ranks, whose group has this timeout; they are gone in the end."""
    ranks = FaultyRanks(num_ranks, timeout_seconds, sides)
    try:
        yield ranks
    finally:
        ranks.end()


def _run_rank(
    connection: Connection,
    side: Side | None,
    group: tuple[int, int, str, timedelta],
    function: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    # Who starts the tests in the background makes them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if side is not None:
        side.enter()
    rank, world_size, store, timeout = group
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    dist.distributed_c10d._set_pg_timeout(timeout)  # connecting may take longer
    dist.distributed_c10d._get_default_store().set_timeout(timeout)
    dist.barrier()  # the thread of the group has its name now
    port = int(store.rpartition(":")[2])
    before = set(threads_and_sockets(port))
    error, message, seconds = "", "", 0.0
    try:
        function(connection.send, *args)
    except (Exception, KeyboardInterrupt) as raised:
        seconds = time.monotonic()
        error, message = type(raised).__name__, str(raised)
    gc.collect()  # DDP models and hook states are cycles
    dist.destroy_process_group()
    gc.collect()
    # What was there before is torch's: a DDP model, even without a hook, leaves its group behind.
    left = set(threads_and_sockets(port)) - before
    connection.send(Outcome(0, error, message, seconds, tuple(sorted(left))))


def threads_and_sockets(server_port: int | None = None) -> Iterator[str]:
    """Return those of fastcomm, and gloo's, that this process has.

    Args:
        server_port: where it serves others, whose connections are theirs.
    """
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith(("fastcomm", "gloo_tcp_loop")):
            yield f"{name} {task.name}"
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(descriptor)
            if target.startswith("socket:") and _is_own(int(descriptor.name), server_port):
                yield target


def _is_own(descriptor: int, server_port: int | None) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        if duplicate.family == socket.AF_UNIX:
            return False
        return bool(duplicate.getsockname()[1] != server_port)
