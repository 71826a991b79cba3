"""What ranks tell each other before data flows: their settings, which must be the same."""

from __future__ import annotations

import json

import torch

from fastcomm import _C
from fastcomm.codecs import Fp32
from fastcomm.errors import MismatchError
from fastcomm.rendezvous import Rendezvous
from fastcomm.waiting import wait_for

_ALGORITHM = "gather"


class Handshake:
    """One rank's end of it. Its methods are collective.

    Args:
        ranks: who compares.
    """

    def __init__(self, ranks: Rendezvous) -> None:
        self._ranks = ranks
        self._num_comparisons = 0
        self._num_exchanges = 0
        self._plan = _C.BucketPlan([Fp32().spec], [], _ALGORITHM, None)

    def check_agreement(self, settings: dict[str, str], lanes: _C.Communicator | None) -> None:
        """Compare ``settings`` between all ranks.

        Args:
            settings: of this rank.
            lanes: what exchanges tensors in host memory, if there is something: it has deadlines,
                notices ranks that have ended, and tells the others that this one has given up.

        Raises:
            MismatchError: on every rank, with the same message, if any rank differs.
            PeerError: if a rank has ended, or does not compare settings within the timeout.
        """
        mine = json.dumps(settings)
        if lanes is None:
            topic = f"settings/{self._num_comparisons}"
            self._num_comparisons += 1
            answers = self._ranks.share(topic, mine)
        else:
            answers = self._gather(mine, lanes)
        check_same([json.loads(answer) for answer in answers])

    def _gather(self, mine: str, lanes: _C.Communicator) -> list[str]:
        """Return the texts of all ranks: sums of numbers that all ranks but one have as 0."""
        rank, world_size = self._ranks.rank, self._ranks.world_size
        text = torch.tensor(list(mine.encode()))
        lengths = torch.zeros(world_size)
        lengths[rank] = len(text)
        self._sum(lengths, lanes)
        sizes = [int(length) for length in lengths]
        everything = torch.zeros(sum(sizes))
        torch.split(everything, sizes)[rank].copy_(text)
        self._sum(everything, lanes)
        texts = torch.split(everything.to(torch.uint8), sizes)
        return [bytes(each.tolist()).decode() for each in texts]

    def _sum(self, numbers: torch.Tensor, lanes: _C.Communicator) -> None:
        index = self._num_exchanges
        self._num_exchanges += 1
        wait_for(lanes.all_reduce(numbers, None, self._plan, 1.0, index, _C.SETTINGS_BUCKET))


def check_same(settings_of_rank: list[dict[str, str]]) -> None:
    """Compare the settings of all ranks.

    Raises:
        MismatchError: if any rank differs.
    """
    keys = dict.fromkeys(key for settings in settings_of_rank for key in settings)
    differing = [key for key in keys if len({str(s.get(key)) for s in settings_of_rank}) > 1]
    if differing:
        rows = [
            f"  rank {rank}: " + ", ".join(f"{key}={settings.get(key)}" for key in differing)
            for rank, settings in enumerate(settings_of_rank)
        ]
        raise MismatchError(
            f"the ranks disagree on {' and '.join(differing)}; "
            "use the same on every rank:\n" + "\n".join(rows)
        )
