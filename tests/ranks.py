"""Runs functions on real processes that form a gloo process group.

Starting Python with torch takes seconds, so that the worker processes are kept and reused. Tests
stay independent all the same: every run has a process group of its own, and workers that failed
in any way are replaced.
"""

import atexit
import faulthandler
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")

# What blocks in the process group fails first, with a message; what blocks elsewhere is shown as
# the stacks of all threads of its rank; the last resort is to kill the processes.
GROUP_TIMEOUT = timedelta(seconds=30)
RUN_SECONDS = 60.0
SECONDS_TO_SHOW_STACKS = 10.0


class RanksFailedError(AssertionError):
    """Some ranks raised, died or hung; the message has what each of them said."""


@dataclass(frozen=True)
class _Job:
    rank: int
    num_ranks: int
    store_path: str
    call: bytes  # pickled (function, args, kwargs)
    seconds: float  # how long it may take


@dataclass(frozen=True)
class _Answer:
    result: Any = None
    error: str = ""


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def close(self, grace_seconds: float) -> None:
        self.connection.close()  # the worker ends at the end of its input
        self.process.join(grace_seconds)
        self.process.kill()
        self.process.join()


_workers: list[_Worker] = []


def run(num_ranks: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
    """Call ``function`` on ``num_ranks`` processes; return what each rank returned.

    The default process group is initialized there. ``function`` must be importable (top-level),
    its arguments and results picklable. What it needs to check it may assert: any exception on
    any rank fails the run.

    Raises:
        RanksFailedError: if any rank raised, died, or did not answer in time.
    """
    return run_for(RUN_SECONDS, num_ranks, function, *args, **kwargs)


def run_for(
    seconds: float, num_ranks: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> list[T]:
    """Do what ``run`` does, in so many seconds."""
    while len(_workers) < num_ranks:
        _workers.append(_Worker())
    workers = _workers[:num_ranks]
    with tempfile.TemporaryDirectory() as folder:
        call = pickle.dumps((function, args, kwargs))
        for rank, worker in enumerate(workers):
            job = _Job(rank, num_ranks, os.path.join(folder, "store"), call, seconds)
            worker.connection.send_bytes(pickle.dumps(job))
        answers = _collect([worker.connection for worker in workers], seconds)
    errors = [f"rank {rank}: {a.error}" for rank, a in enumerate(answers) if a.error]
    if errors:
        del _workers[:num_ranks]
        for worker in workers:
            worker.close(grace_seconds=0)
        raise RanksFailedError("\n".join(errors))
    return [answer.result for answer in answers]


def _collect(connections: list[Connection], seconds: float) -> list[_Answer]:
    answers = [_Answer(error=f"no answer within {seconds:g} s")] * len(connections)
    pending = list(connections)
    deadline = time.monotonic() + seconds + SECONDS_TO_SHOW_STACKS
    while pending and (left := deadline - time.monotonic()) > 0:
        for connection in wait(pending, left):
            assert isinstance(connection, Connection)
            pending.remove(connection)
            try:
                answer = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                answer = _Answer(error="the process died (its last words are in stderr)")
            answers[connections.index(connection)] = answer
    return answers


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)  # the ranks share the cores already
    while True:
        try:
            job: _Job = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        faulthandler.dump_traceback_later(job.seconds, exit=True)
        try:
            answer = pickle.dumps(_Answer(result=_call(job)))
        except BaseException:
            answer = pickle.dumps(_Answer(error=traceback.format_exc()))
        faulthandler.cancel_dump_traceback_later()
        connection.send_bytes(answer)


def _call(job: _Job) -> Any:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.store_path}",
        rank=job.rank,
        world_size=job.num_ranks,
        timeout=GROUP_TIMEOUT,
    )
    try:
        function, args, kwargs = pickle.loads(job.call)
        torch.manual_seed(0)
        result = function(*args, **kwargs)
        dist.barrier()  # a rank that leaves early would cut off what it has sent
        return result
    finally:
        gc.collect()  # DDP models and hook states are cycles; they end before their process group
        dist.destroy_process_group()


def run_script(
    source: str, folder: Path, num_ranks: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script under torchrun, as users do; its processes end as any interpreter does."""
    script = folder / "script.py"
    script.write_text(source)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc-per-node={num_ranks}", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS + SECONDS_TO_SHOW_STACKS,
        check=False,
    )


def _close_workers() -> None:
    for worker in _workers:
        worker.connection.close()
    for worker in _workers:
        worker.close(grace_seconds=10)


atexit.register(_close_workers)
