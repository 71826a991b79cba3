"""Waiting for an exchange, so that Ctrl-C ends the wait."""

from __future__ import annotations

import threading
from typing import TypeVar

import torch

T = TypeVar("T")


def is_interruptible() -> bool:
    """Return whether Ctrl-C is for this thread."""
    return threading.current_thread() is threading.main_thread()


def wait_for(future: torch.futures.Future[T]) -> T:
    """Return what the future holds once it is complete, or raise its error.

    Its own ``wait`` cannot be interrupted, and the timeout of a process group is half an hour. Only
    the main thread is ever interrupted.
    """
    if is_interruptible() and not future.done():
        completed = threading.Event()
        future.add_done_callback(lambda _: completed.set())
        completed.wait()
    return future.wait()
