"""How the ranks of a connection find each other: through the store of their process group.

A store keeps what it was told. A program that makes its process group anew in one process, or a
launcher that has one store for all of its restarts, leaves the addresses of the time before there.
So rank 0 draws a *nonce* for each connection, and everything else has keys below it. Another rank
learns it by an answer to a token of its own, which nobody has seen before. Rank 0 answers until all
ranks have used the nonce: a token that it finds may be of the time before.

A store whose host is stopped, or cut off, blocks its callers. All that is done here ends in time,
and can be interrupted.
"""

from __future__ import annotations

import functools
import json
import socket
import uuid
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

import fastcomm
from fastcomm.errors import PeerError
from fastcomm.own_store import OwnStore
from fastcomm.sockets import Sockets
from fastcomm.watched_calls import Deadline, call_within

T = TypeVar("T")

# Seconds between two looks for what another rank says: more and more.
_SHORTEST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.02

# How much longer than the timeout a call is waited for that ends by itself at the timeout.
_LONGEST_GRACE = 1.0


class Rendezvous:
    """One rank's end of it. Making one is collective.

    Args:
        store: of the process group.
        name: of the connection, the same on all ranks.
        rank: of this process.
        world_size: how many there are.
        seconds: how long to wait for another rank, or for the store.

    Raises:
        PeerError: if a rank does not come, or the store does not answer.
    """

    def __init__(self, store: Store, name: str, rank: int, world_size: int, seconds: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self.seconds = seconds
        self._own_store = OwnStore(store, Sockets())
        self.store_name = str(self._own_store)
        meet = functools.partial(self._meet, name)
        # The process group's, and the part of these ranks' connections, which no others have.
        self.group_store, self.nonce, ranks = self.watch("find the other ranks", meet)
        self.store: Store = PrefixStore(self.nonce, PrefixStore(name, self.group_store))
        self.versions = [each["fastcomm"] for each in ranks]
        self.hosts = [each["host"] for each in ranks]

    def watch(
        self, what: str, function: Callable[[Deadline], T], seconds: float | None = None
    ) -> T:
        """Return what ``function`` does, which may use the store, but not for ever.

        Args:
            what: this rank cannot do if it fails.
            function: is given when it must end by itself.
            seconds: how long it may take; None: as long as ranks are waited for.

        Raises:
            PeerError: if the store does not answer, or cannot be reached.
        """
        seconds = self.seconds if seconds is None else seconds
        deadline = Deadline(seconds)
        patience = Deadline(seconds + min(_LONGEST_GRACE, seconds / 4))
        try:
            return call_within(patience, functools.partial(function, deadline), self.cut_off)
        except TimeoutError:
            raise PeerError(
                f"rank {self.rank} cannot {what}: {self.store_name} does not answer for "
                f"{seconds:g} s; the process that holds it is stopped, or cut off"
            ) from None
        except dist.DistError as error:
            raise PeerError(
                f"rank {self.rank} cannot {what}: it cannot reach {self.store_name}; the process "
                f"that holds it has ended ({error})"
            ) from error
        finally:
            deadline.give_up()

    def cut_off(self) -> None:
        """End what waits for the store on this rank, with an error; the store is of no use then."""
        self._own_store.cut_off()

    def share(self, topic: str, mine: str, seconds: float | None = None) -> list[str]:
        """Return what every rank says about ``topic``, this one ``mine``. Collective.

        Raises:
            PeerError: if a rank does not say anything, or the store does not answer.
        """
        share = functools.partial(self._share, self.store, topic, mine)
        return self.watch("compare settings", share, seconds)

    def _meet(self, name: str, deadline: Deadline) -> tuple[Store, str, list[dict[str, str]]]:
        group_store = self._own_store.open()
        base = PrefixStore(name, group_store)
        mine = json.dumps({"fastcomm": fastcomm.__version__, "host": socket.gethostname()})
        nonce = uuid.uuid4().hex if self.rank == 0 else self._ask(base, deadline)
        store = PrefixStore(nonce, base)
        if self.rank == 0:
            self._answer(base, store, nonce, deadline)
        texts = self._share(store, "here", mine, deadline)
        return group_store, nonce, [json.loads(text) for text in texts]

    def _answer(self, base: Store, store: Store, nonce: str, deadline: Deadline) -> None:
        """Tell the other ranks the nonce until all have used it."""
        answered: dict[int, str] = {}

        def find(rank: int) -> str | None:
            for other in range(rank, self.world_size):
                token = _read(base, f"token/{other}")
                if token is not None and answered.get(other) != token:
                    base.set(f"answer/{other}", f"{token} {nonce}")
                    answered[other] = token
            return _read(store, f"here/{rank}")

        for rank in range(1, self.world_size):
            self._wait_for(functools.partial(find, rank), rank, deadline)

    def _ask(self, base: Store, deadline: Deadline) -> str:
        """Return the nonce that rank 0 has drawn."""
        mine = uuid.uuid4().hex
        base.set(f"token/{self.rank}", mine)

        def find() -> str | None:
            token, _, nonce = (_read(base, f"answer/{self.rank}") or "").partition(" ")
            return nonce if token == mine else None

        return self._wait_for(find, 0, deadline)

    def _share(self, store: Store, topic: str, mine: str, deadline: Deadline) -> list[str]:
        store.set(f"{topic}/{self.rank}", mine)
        return [
            self._wait_for(functools.partial(_read, store, f"{topic}/{rank}"), rank, deadline)
            for rank in range(self.world_size)
        ]

    def _wait_for(self, find: Callable[[], str | None], rank: int, deadline: Deadline) -> str:
        pause = _SHORTEST_PAUSE
        while (found := find()) is None:
            if not deadline.left():
                raise PeerError(
                    f"rank {rank} of the process group did not meet rank {self.rank} in the store "
                    f"for {deadline.seconds:g} s: it is stopped, cut off, or does something else; "
                    "make the same calls on every rank"
                )
            # Not store.wait(): it logs every timeout.
            deadline.pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return found


def _read(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None
