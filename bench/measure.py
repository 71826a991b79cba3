"""How the benchmarks measure: operations that take turns, and the facts of the machine."""

import gc
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

import fastcomm
from fastcomm import _C

REPOSITORY = Path(__file__).resolve().parent.parent
S = TypeVar("S")


class TakingTurns(Generic[S]):
    """Operations that run one after the other, over and over, each on the next set of buffers.

    What they are compared with runs in the same turns: a machine that is slow for a second is slow
    for all. With enough sets, none finds its buffers in the cache.
    """

    def __init__(
        self, operations: Mapping[str, Callable[[S], object]], sets: Sequence[S], warmup: int = 1
    ) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in operations}
        self._operations = operations
        self._sets = sets
        self._turn = 0
        self.repeat(warmup)
        for seconds in self.seconds.values():
            seconds.clear()

    def repeat(self, repetitions: int) -> None:
        """Run and time every operation ``repetitions`` times."""
        gc.collect()
        gc.disable()
        try:
            for _ in range(repetitions):
                for name, operation in self._operations.items():
                    buffers = self._sets[self._turn % len(self._sets)]
                    self._turn += 1
                    start = time.perf_counter()
                    operation(buffers)
                    self.seconds[name].append(time.perf_counter() - start)
        finally:
            gc.enable()

    def next_set(self, name: str) -> S:
        """Return the set that operation ``name`` works on in the next repetition."""
        return self._sets[(self._turn + list(self._operations).index(name)) % len(self._sets)]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(values))


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range as a fraction of the median."""
    lower, middle, upper = np.percentile(values, [25, 50, 75])
    return float((upper - lower) / middle)


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Make fastcomm use one instruction set."""
    _C.force_isa(name)
    try:
        yield
    finally:
        _C.force_isa("")


def restart_with_sleeping_threads() -> None:
    """Run this script anew with OpenMP threads that sleep when idle.

    By default those of torch spin for milliseconds after each operation, on the cores that the
    next operation is measured on; OpenMP reads its settings when torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def l3_bytes() -> int | None:
    """Return the size of the last-level cache that core 0 uses, None if the system hides it."""
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "level").read_text().strip() == "3":
            size = (index / "size").read_text().strip()
            return int(size.removesuffix("K")) * 1024
    return None


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cpu_model() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the repository, "-dirty" if files differ from it, or "unknown"."""
    git = ["git", "--no-optional-locks", "-C", str(REPOSITORY)]
    result = subprocess.run(
        [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or "unknown"


def facts() -> dict[str, str | int | None]:
    """Return what every row of results says about where it comes from."""
    return {
        "machine": f"{platform.node()} {platform.platform()}",
        "cpu_model": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "isas": ",".join(_C.supported_isas()),
        "l3_bytes": l3_bytes(),
        "memory_bytes": memory_bytes(),
        "torch": torch.__version__,
        "fastcomm": fastcomm.__version__,
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
