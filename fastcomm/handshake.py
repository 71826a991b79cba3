"""What ranks tell each other through the process group's store, before data flows."""

from __future__ import annotations

import json
import time

import torch.distributed as dist
from torch._C._distributed_c10d import Store

import fastcomm
from fastcomm import _C
from fastcomm.errors import MismatchError, PeerError

# Seconds between two looks for what another rank says: more and more.
_SHORTEST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.02


class Handshake:
    """One rank's end of it.

    Its methods are collective. They are given what exchanges tensors in host memory, if there is
    one: it notices ranks that have ended, and tells the others that this one has given up.

    Args:
        store: of these ranks and of nobody else.
        rank: of this process.
        world_size: how many there are.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._num_comparisons = 0

    def check_agreement(self, settings: dict[str, str], lanes: _C.Communicator | None) -> None:
        """Compare ``settings``, and fastcomm's version, between all ranks.

        Raises:
            MismatchError: on every rank, with the same message, if any rank differs.
            PeerError: as :meth:`share`.
        """
        settings = {"fastcomm": fastcomm.__version__, **settings}
        topic = f"handshake/{self._num_comparisons}"
        self._num_comparisons += 1
        of_rank = [json.loads(answer) for answer in self.share(topic, json.dumps(settings), lanes)]
        differing = [key for key in settings if len({str(s.get(key)) for s in of_rank}) > 1]
        if differing:
            rows = [
                f"  rank {rank}: " + ", ".join(f"{key}={s.get(key)}" for key in differing)
                for rank, s in enumerate(of_rank)
            ]
            raise MismatchError(
                f"the ranks disagree on {' and '.join(differing)}; "
                "use the same on every rank:\n" + "\n".join(rows)
            )

    def share(self, topic: str, mine: str, lanes: _C.Communicator | None) -> list[str]:
        """Return what every rank says about ``topic``, this one ``mine``.

        Raises:
            PeerError: if a rank has ended, or does not say anything within the store's timeout; on
                the others, too, which are told.
        """
        try:
            return self._collect(topic, mine, lanes)
        except PeerError as error:
            if lanes is not None:
                lanes.fail(f"rank {self._rank}, comparing settings: {error}")
            raise

    def _collect(self, topic: str, mine: str, lanes: _C.Communicator | None) -> list[str]:
        try:
            self._store.set(f"{topic}/{self._rank}", mine)
            return [self._wait_for(f"{topic}/{r}", r, lanes) for r in range(self._world_size)]
        except dist.DistError as error:
            raise PeerError(
                f"rank {self._rank} cannot reach the store of the process group, in which ranks "
                f"compare settings; the process that holds it has ended ({error})"
            ) from error

    def _wait_for(self, key: str, rank: int, lanes: _C.Communicator | None) -> str:
        seconds = self._store.timeout.total_seconds()  # type: ignore[attr-defined]  # a stub
        deadline = time.monotonic() + seconds
        pause = _SHORTEST_PAUSE
        while not self._store.check([key]):
            if lanes is not None:
                lanes.check(rank)
            if time.monotonic() > deadline:
                raise PeerError(
                    f"rank {rank} of the process group did not compare settings with rank "
                    f"{self._rank} for {seconds:g} s: it is stopped, cut off, or does something "
                    "else; make the same calls on every rank"
                )
            # Not store.wait(): it cannot be interrupted, and logs every timeout.
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return self._store.get(key).decode()
