"""Waiting for an exchange, so that Ctrl-C ends the wait."""

from __future__ import annotations

import threading
from typing import TypeVar

import torch

T = TypeVar("T")


def wait_for(future: torch.futures.Future[T]) -> T:
    """Return what the future holds once it is complete, or raise its error.

    Its own ``wait`` cannot be interrupted, and the timeout of a process group is half an hour.
    """
    if not future.done():
        completed = threading.Event()
        future.add_done_callback(lambda _: completed.set())
        completed.wait()
    return future.wait()
