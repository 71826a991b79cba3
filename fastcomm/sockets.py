"""The sockets of this process that are fastcomm's: for certain, and no others.

Other threads of the program open sockets, too, while ranks connect. So a socket is taken for one of
fastcomm's only if it is new and its addresses say so.

A connection is closed, and the other ranks notice that this one has ended, when the last process
that holds it ends. So programs that this one starts do not get what is kept here, and processes
that it forks, such as a worker of a DataLoader, close it. They leave everything else alone: the
native threads behind it exist in the parent only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class OpenSocket:
    """A TCP socket of this process."""

    descriptor: int
    name: str  # has a number that no other socket has
    local: bytes  # its addresses, as C programs have them in memory: the first bytes of a sockaddr
    remote: bytes  # empty: it listens
    remote_port: int
    host: str  # the local one


class Snapshot:
    """The sockets that are open when it is made; or none of them."""

    def __init__(self, is_empty: bool = False) -> None:
        self._names = set() if is_empty else {name for _, name in _open_sockets()}

    def opened_since(self, is_wanted: Callable[[OpenSocket], bool]) -> list[OpenSocket]:
        """Return the TCP sockets that were opened later and are wanted."""
        new = [_described(*entry) for entry in _open_sockets() if entry[1] not in self._names]
        return [opened for opened in new if opened is not None and is_wanted(opened)]


class Sockets:
    """Sockets of fastcomm, which forked processes close and other programs do not get."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        _known.add(self)

    def keep(self, opened: list[OpenSocket]) -> None:
        """Add some."""
        for each in opened:
            self._names[each.descriptor] = each.name
            with contextlib.suppress(OSError):  # closed meanwhile
                fcntl.fcntl(each.descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)

    def close(self) -> None:
        """Close those that are still open."""
        for descriptor in self._still_open():
            os.close(descriptor)

    def shut_down(self) -> None:
        """Cut off those that are still open: who waits for something from there gets an error."""
        for descriptor in self._still_open():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as ours:
                ours.shutdown(socket.SHUT_RDWR)

    def _still_open(self) -> list[int]:
        return [fd for fd, name in _open_sockets() if self._names.get(fd) == name]


def _open_sockets() -> Iterator[tuple[int, str]]:
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the list itself
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:"):
                yield int(entry), name


def _described(descriptor: int, name: str) -> OpenSocket | None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            if duplicate.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            local, remote = duplicate.getsockname(), None
            with contextlib.suppress(OSError):
                remote = duplicate.getpeername()
            family = duplicate.family
    except OSError:  # closed meanwhile
        return None
    port = remote[1] if remote else 0
    there = _packed(family, remote) if remote else b""
    return OpenSocket(descriptor, name, _packed(family, local), there, port, local[0])


def _packed(family: int, address: tuple[str, int]) -> bytes:
    """Return the beginning of a sockaddr_in or sockaddr_in6."""
    flow = b"" if family == socket.AF_INET else bytes(4)
    host = socket.inet_pton(family, address[0].partition("%")[0])
    return struct.pack("=H", family) + struct.pack("!H", address[1]) + flow + host


def _close_inherited() -> None:
    for sockets in list(_known):
        sockets.close()


_known: weakref.WeakSet[Sockets] = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_inherited)
