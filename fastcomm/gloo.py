"""Backends of gloo that are fastcomm's own, on the network that a process group uses."""

from __future__ import annotations

import datetime
import functools
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Backend, PrefixStore, Store

from fastcomm.sockets import OpenSocket, Snapshot, Sockets


class Gloo:
    """What makes backends like a given one.

    Each has devices of its own, and their threads: the group's would be busy with both. They
    listen where the group's do, whatever the environment says now.

    Args:
        given: the backend of the process group.
        group_store: the store of the process group.
        rank: of this process.
        world_size: how many there are.
        timeout: of the backends.
    """

    def __init__(
        self,
        given: Backend,
        group_store: Store,
        rank: int,
        world_size: int,
        timeout: datetime.timedelta,
    ) -> None:
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._num_devices = len(getattr(given.options, "_devices", ()))
        self._num_threads = getattr(given.options, "_threads", 0)
        # c10d gives gloo this part of the store.
        self._hosts = self._listening_hosts(PrefixStore("cpu/", group_store))

    def make(self, store: Store, sockets: Sockets) -> Backend:
        """Return a backend that connects over ``store``; ``sockets`` gets its sockets."""
        before = Snapshot()
        options = self._options()
        arguments = (store, self._rank, self._world_size)
        if options is None:  # what the environment says, as for a group without options
            backend: Any = dist.ProcessGroupGloo(*arguments, timeout=self._timeout)
        else:
            backend = dist.ProcessGroupGloo(*arguments, options)
        num_devices = len(backend.options._devices)
        addresses = [
            b"".join(_address(store, device, rank) for device in range(num_devices))
            for rank in range(self._world_size)
        ]
        sockets.keep(before.opened_since(functools.partial(_is_among, self._rank, addresses)))
        made: Backend = backend
        return made

    def _options(self) -> Any:
        if not self._hosts:
            return None
        gloo: Any = dist.ProcessGroupGloo  # torch's stubs lack its options
        options = gloo._Options()
        try:
            options._devices = [gloo.create_device(hostname=host) for host in self._hosts]
        except RuntimeError:  # not every address can be given as a name
            return None
        options._threads = self._num_threads
        options._timeout = self._timeout
        return options

    def _listening_hosts(self, store: Store) -> list[str]:
        """Return where the group's devices listen, which do not say so; [] if it is not known."""
        hosts = []
        for device in range(self._num_devices):
            address = _address(store, device, self._rank)
            found = Snapshot(is_empty=True).opened_since(functools.partial(_listens, address))
            hosts += [opened.host for opened in found[:1]]
        return hosts if len(hosts) == self._num_devices else []


def _address(store: Store, device: int, rank: int) -> bytes:
    """Return where a rank listens, among other bytes, as gloo has written it into its store."""
    key = f"{device}/{rank}"
    return store.get(key) if store.check([key]) else b""


def _listens(address: bytes, opened: OpenSocket) -> bool:
    return not opened.remote and opened.local in address


def _is_among(rank: int, addresses: list[bytes], opened: OpenSocket) -> bool:
    """Return whether a socket of ``rank`` listens, or was accepted, or connects there."""
    if opened.local in addresses[rank]:
        return True
    return bool(opened.remote) and any(opened.remote in address for address in addresses)
