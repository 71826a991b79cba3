"""The store of a process group, over a connection of fastcomm's own."""

from __future__ import annotations

from torch._C._distributed_c10d import Store

from fastcomm.sockets import OpenSocket, Snapshot, Sockets
from fastcomm.watched_calls import Deadline


class OwnStore:
    """A store like ``store``, over a connection of its own if it can have one.

    A store that waits for a key lets no other thread use its connection: threads that make the
    first call of several groups would wait for each other.

    Args:
        store: whose content it has.
        sockets: get that of the connection.
    """

    def __init__(self, store: Store, sockets: Sockets) -> None:
        self._given: Store | None = store
        self._sockets = sockets
        self._before: Snapshot | None = None  # it is being opened
        self._opening = Deadline(0)
        while hasattr(store, "underlying_store"):  # a PrefixStore
            store = store.underlying_store
        self._port = getattr(store, "port", 0)
        address = f" at {store.host}:{self._port}" if hasattr(store, "host") else ""
        self._name = f"the store of the process group{address}"

    def __str__(self) -> str:
        return self._name

    def open(self) -> Store:
        """Connect, and let go of the given store, which may be the server's.

        While the host of the store is stopped, this lasts.
        """
        store, self._given = self._given, None
        assert store is not None
        # How long it tries again after an error.
        self._opening = Deadline(store.timeout.total_seconds())  # type: ignore[attr-defined]
        try:
            self._before = Snapshot()
            cloned: Store = store.clone()  # type: ignore[attr-defined]  # torch's stubs lack both
        except (AttributeError, NotImplementedError, RuntimeError, OSError):
            return store
        finally:
            self._find_socket()
        return cloned

    def cut_off(self) -> None:
        """End what waits for the store, with an error, if the connection is known for certain."""
        if self._before is not None and self._opening.left():
            return  # it would try again
        self._find_socket()
        self._sockets.shut_down()

    def _find_socket(self) -> None:
        if self._before is None:
            return
        found = self._before.opened_since(self._is_connected)
        self._before = None
        if len(found) == 1:  # else another thread connects to the same store, too
            self._sockets.keep(found)

    def _is_connected(self, opened: OpenSocket) -> bool:
        return bool(self._port) and opened.remote_port == self._port
