"""Calls that may block for ever, such as one of a store whose host is stopped.

They run on a thread of their own: who waits for them can be interrupted, and gives up in time. The
thread is a daemon, so that it does not keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# How long a call that was cut off may take to notice.
_SECONDS_TO_END = 0.5


class Deadline:
    """When to give up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._given_up = threading.Event()

    def left(self) -> float:
        """Return how many seconds are left; 0: it is over."""
        return 0.0 if self.is_given_up else max(0.0, self._end - time.monotonic())

    def pause(self, seconds: float) -> None:
        """Sleep, no longer than until the deadline is over."""
        self._given_up.wait(min(seconds, self.left()))

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits any more."""
        return self._given_up.is_set()

    def give_up(self) -> None:
        """Make the deadline be over."""
        self._given_up.set()


class WatchedCall(Generic[T]):
    """A call of ``function`` under way.

    Args:
        function: what to call.
        ended: is set when it has returned or raised.
    """

    def __init__(self, function: Callable[[], T], ended: threading.Event) -> None:
        self._function = function
        self._ended = ended
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.has_ended = False
        self._thread = threading.Thread(target=self._run, name="fastcomm-call", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter ends, and there are no new threads any more
            self._run()

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:  # the caller's concern, whatever it is
            self._error = error
        self.has_ended = True
        self._ended.set()

    def result(self) -> T:
        """Return what a call that has ended returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._results.pop()

    def join(self, seconds: float) -> None:
        """Wait for its end, but not longer."""
        if not self.has_ended:
            self._thread.join(seconds)


def call_within(
    deadline: Deadline, function: Callable[[], T], cut_off: Callable[[], None] = lambda: None
) -> T:
    """Return what ``function()`` does, which is given up when the time is over.

    Args:
        deadline: when.
        function: what to call. If it is given up it goes on, as long as it can.
        cut_off: makes it end, if possible, when it is given up.

    Raises:
        TimeoutError: if it takes longer.
    """
    ended = threading.Event()
    call = WatchedCall(function, ended)
    try:
        ended.wait(deadline.left())
        if not call.has_ended:
            raise TimeoutError
    except BaseException:  # also when interrupted
        cut_off()
        call.join(_SECONDS_TO_END)
        raise
    return call.result()
