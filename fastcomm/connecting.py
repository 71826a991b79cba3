"""Making the connections of all ranks, which fails on all of them if it fails on one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from torch._C._distributed_c10d import PrefixStore, Store

from fastcomm.errors import Error, PeerError
from fastcomm.rendezvous import Rendezvous
from fastcomm.watched_calls import Deadline, WatchedCall

T = TypeVar("T")

# Where nothing fails, connecting is over before a rank begins to look for failures of others.
_SECONDS_BEFORE_LOOKING = 0.5
_SECONDS_BETWEEN_LOOKS = 0.1

# How long ranks have, before the timeout, to say that they wait; and how long to read who did.
_LONGEST_TIME_TO_SAY = 1.0


class Connecting:
    """One rank's part in it.

    Args:
        ranks: who connects.
        name: of these connections, the same on all ranks.
    """

    def __init__(self, ranks: Rendezvous, name: str) -> None:
        self._ranks = ranks
        self._name = name
        self._deadline = Deadline(ranks.seconds)
        self._time_to_say = min(_LONGEST_TIME_TO_SAY, ranks.seconds / 4)
        self._is_connected = False

    def run(self, make: Callable[[Store], T]) -> T:
        """Return what ``make`` returns, which connects over the store that it is given. Collective.

        Raises:
            PeerError: if any rank cannot connect, or does not do so within the timeout.
        """
        changed = threading.Event()
        call = WatchedCall(lambda: self._make(make), changed)
        lookout: WatchedCall[str] | None = None
        try:
            changed.wait(min(_SECONDS_BEFORE_LOOKING, self._deadline.left()))
            if not call.has_ended:
                lookout = WatchedCall(self._look_out, changed)
                changed.wait(self._deadline.left() + self._time_to_say)
            if call.has_ended:
                return call.result()
            raise self._failure(lookout.result() if lookout and lookout.has_ended else "")
        except (RuntimeError, OSError) as error:
            if isinstance(error, Error):
                raise
            raise self._failure(str(error)) from error
        finally:  # also when interrupted
            self._deadline.give_up()
            if not call.has_ended:
                self._ranks.cut_off()
                call.join(self._time_to_say)
            if lookout is not None:
                lookout.join(self._time_to_say)

    def _failure(self, reason: str) -> PeerError:
        reason = reason or (
            f"{self._ranks.store_name} does not answer for {self._deadline.seconds:g} s; the "
            "process that holds it is stopped, or cut off"
        )
        return PeerError(f"rank {self._ranks.rank} cannot connect to all others: {reason}")

    def _make(self, make: Callable[[Store], T]) -> T:
        rank = self._ranks.rank
        store = PrefixStore(self._name, self._ranks.store)
        try:
            made = make(store)
        except Exception as error:
            if not self._deadline.is_given_up:
                with contextlib.suppress(RuntimeError):  # the store is gone, too
                    _report(store, f"rank {rank} failed: {error}")
            raise
        self._is_connected = True
        store.set(f"connected/{rank}", "")
        return made

    def _look_out(self) -> str:
        """Return what has failed elsewhere, or who is missing shortly before the timeout."""
        try:
            # What connects keeps the other connection to the store for itself.
            cloned = self._ranks.store.clone()  # type: ignore[attr-defined]  # a stub
            return self._find_failure(PrefixStore(self._name, cloned))
        except (NotImplementedError, RuntimeError):
            self._deadline.pause(self._deadline.seconds)
            return f"not complete after {self._deadline.seconds:g} s"

    def _find_failure(self, store: Store) -> str:
        has_said = False
        while (left := self._deadline.left()) > self._time_to_say:
            if store.check(["failed"]):
                return store.get("failed").decode()
            if not has_said and left < 2 * self._time_to_say:
                store.set(f"waits/{self._ranks.rank}", "")
                has_said = True
            self._deadline.pause(_SECONDS_BETWEEN_LOOKS)
        if self._deadline.is_given_up:
            if not self._is_connected:
                _report(store, f"rank {self._ranks.rank} has given up")
            return ""
        return self._describe_missing(store)

    def _describe_missing(self, store: Store) -> str:
        ranks = range(self._ranks.world_size)
        late = [rank for rank in ranks if not store.check([f"connected/{rank}"])]
        silent = [rank for rank in late if not store.check([f"waits/{rank}"])]
        names = " and ".join(f"rank {rank}" for rank in silent or late)
        what = "stopped, or cut off" if silent else "waiting for connections, as this one is"
        return (
            f"not complete after {self._deadline.seconds:g} s, the timeout of the process group; "
            f"{names}: {what}"
        )


def _report(store: Store, failure: str) -> None:
    if not store.check(["failed"]):  # the first one is what one looks for
        store.set("failed", failure)
