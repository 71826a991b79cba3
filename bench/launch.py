"""Starts the ranks of a benchmark on this host, each in its own process, over a network of a rate.

A benchmark has a program for its ranks: a script that takes a JSON text of settings and, on rank 0,
hands its rows to :func:`write_rows`. Ranks meet as under torchrun, so that the same program also
runs there::

    with network(world_size=2, rate="1gbit") as link:
        rows = run_ranks(link, "allreduce_ranks.py", {"sizes": [65536]}, timeout_seconds=60)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shaped_link import ShapedLink, can_shape, parse_rate

_FOLDER = Path(__file__).resolve().parent


class RanksFailedError(RuntimeError):
    """A rank ended with an error, was killed by a signal, or took too long; says which and how."""


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Loopback:
    """The ranks talk over the loopback interface: as fast as memory."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.bits_per_second: int | None = None

    def command_prefix(self, rank: int) -> list[str]:
        """Return what goes before a rank's command: nothing."""
        return []

    def environment(self, rank: int) -> dict[str, str]:
        """Return the environment variables by which the ranks meet."""
        return {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "GLOO_SOCKET_IFNAME": "lo",
        }


def parse_rates(text: str) -> list[str | None]:
    """Return the rates of a list on the command line; None: unshaped."""
    rates = [None if rate == "none" else rate for rate in text.split(",")]
    for rate in rates:
        try:
            parse_rate(rate or "1gbit")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return rates


@contextmanager
def network(world_size: int, rate: str | None) -> Iterator[ShapedLink | Loopback]:
    """Return a network for so many ranks; ``rate`` None: loopback.

    Raises:
        RuntimeError: if this process cannot shape a network.
    """
    if rate is None:
        yield Loopback(world_size)
        return
    support = can_shape()
    if not support.possible:
        raise RuntimeError(f"cannot limit the rate to {rate}: {support.reason}; use --rate none")
    with ShapedLink(world_size, rate) as link:
        yield link


def is_rank() -> bool:
    """Return whether this process is one of several that torchrun started."""
    return "RANK" in os.environ


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end this process by an exception: its default action would leave the ranks."""
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not is_free or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_ranks(
    link: ShapedLink | Loopback, program: str, settings: dict[str, Any], timeout_seconds: float
) -> list[dict[str, Any]]:
    """Run ``program`` of this folder on every rank of ``link``; return the rows of rank 0.

    Raises:
        RanksFailedError: if a rank fails, or they take longer than ``timeout_seconds``.
    """
    meeting = link.environment(0)
    with _sigterm_raises(), tempfile.TemporaryDirectory(prefix="fastcomm-bench-") as folder:
        output = Path(folder) / "rows.json"
        text = json.dumps({**settings, "output": str(output)})
        errors = [Path(folder) / f"rank{rank}.txt" for rank in range(link.world_size)]
        ranks = []
        try:
            for rank, error in enumerate(errors):
                environment = {
                    **os.environ,
                    # Threads that spin when idle would take the cores from the other ranks.
                    "OMP_WAIT_POLICY": "passive",
                    **link.environment(rank),
                    "MASTER_PORT": meeting["MASTER_PORT"],
                    "RANK": str(rank),
                    "WORLD_SIZE": str(link.world_size),
                }
                command = [sys.executable, str(_FOLDER / program), text]
                with error.open("w") as file:
                    ranks.append(
                        subprocess.Popen(
                            [*link.command_prefix(rank), *command],
                            env=environment,
                            stderr=file,
                            start_new_session=True,
                        )
                    )
            _wait(ranks, errors, timeout_seconds)
        finally:
            for process in ranks:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        rows: list[dict[str, Any]] = json.loads(output.read_text())
        return rows


def _wait(ranks: list[subprocess.Popen[bytes]], errors: list[Path], timeout_seconds: float) -> None:
    end = time.monotonic() + timeout_seconds
    while any(rank.poll() is None for rank in ranks):
        if any(rank.returncode for rank in ranks):
            break
        if time.monotonic() > end:
            raise RanksFailedError(f"not done after {timeout_seconds:.0f} s")
        time.sleep(0.02)
    for rank, (process, error) in enumerate(zip(ranks, errors, strict=True)):
        if process.poll():
            raise RanksFailedError(
                f"rank {rank} {_how_it_ended(process.returncode)}: {_last(error)}"
            )


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _last(error: Path) -> str:
    """Return the line of an error output that says the most: the last that names an exception."""
    lines = [line.strip() for line in error.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("frame #", "[W"))]
    telling = [line for line in lines if "Error" in line or "what():" in line or "what()" in line]
    return (telling or lines or ["no message"])[-1][:200]


def write_rows(settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Hand the rows of rank 0 to :func:`run_ranks`."""
    output = Path(settings["output"])
    unfinished = output.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(rows))
    unfinished.rename(output)
