"""What the native threads did when, for chrome://tracing, Perfetto and torch.profiler's viewers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcomm.connection import Connection


@contextmanager
def write_chrome_trace(group: Connection, rank: int, path: str | Path) -> Iterator[None]:
    """Record what ``group`` does in the block, and write it to ``path`` at its end.

    Ranges are named encode, decode, send and wait; their arguments are step, bucket and payload
    bytes. ``rank``, which in the job this is, is the process, and a lane is a thread of it. Times
    are microseconds of the monotonic clock, so that the traces of ranks on one host can be shown
    together: they are lists, to be joined.
    """
    group.start_trace()
    try:
        yield
    finally:
        events = [
            _event(rank, lane, name, begin, seconds, step, bucket, num_bytes)
            for lane, step, bucket, name, begin, seconds, num_bytes in group.stop_trace()
        ]
        names = [_process_name(rank)]
        Path(path).write_text(json.dumps(names + events))


def _process_name(rank: int) -> dict[str, Any]:
    return {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}}


def _event(
    rank: int, lane: int, name: str, begin: float, seconds: float, step: int, bucket: int, size: int
) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "fastcomm",
        "name": name,
        "pid": rank,
        "tid": lane,
        "ts": begin * 1e6,
        "dur": seconds * 1e6,
        "args": {"step": step, "bucket": bucket, "payload_bytes": size},
    }
