"""What a forked process, such as a worker of a DataLoader, must not keep of its parent.

A connection is closed, and the other ranks notice that this one has ended, when the last process
that holds it ends. So forked processes close what they inherited, and leave everything else alone:
the native threads behind it exist in the parent only.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator


class Sockets:
    """The sockets that are opened within a ``with`` block, which forked processes will close."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def __enter__(self) -> Sockets:
        self._names = dict(_open_sockets())
        return self

    def __exit__(self, *exception: object) -> None:
        before = set(self._names.values())
        self._names = {fd: name for fd, name in _open_sockets() if name not in before}
        _known.add(self)

    def close(self) -> None:
        """Close those that are still open."""
        for descriptor, name in _open_sockets():
            if self._names.get(descriptor) == name:
                os.close(descriptor)


def _open_sockets() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:"):  # with a number that no other has
                yield int(entry), name


def _close_inherited() -> None:
    for sockets in list(_known):
        sockets.close()


_known: weakref.WeakSet[Sockets] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_inherited)
