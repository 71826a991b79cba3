"""A connected group of ranks: its own backend, native threads, and the handshake.

The ring uses a backend of its own and only point-to-point calls, so that its messages can
never be confused with the user's, whichever threads they come from.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import weakref

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend, PrefixStore, Store

from fastcomm import _C
from fastcomm.codecs import Codec
from fastcomm.errors import ArgumentError, Error, MismatchError

# Exchanges in flight at a time: one encodes while another is on the wire.
NUM_LANES = 2

# Messages from even ranks use one, those from odd ranks the other. gloo's thread spins while
# another writes to a connection that it wants to read from: in a ring of an even number of ranks,
# each connection then carries payloads in one direction only.
_NUM_GLOO_BACKENDS = 2

# The largest payload of a bucket for which latency counts more than what scatter_gather loses to
# the ring in overlap. Measured with 4 and 8 ranks at 1 Gbit/s.
_LARGEST_SCATTERED_BYTES = 1 << 19

# How many connections each process group has so far: the same on all of its ranks.
_num_connections: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()
_open_groups: weakref.WeakSet[ConnectedGroup] = weakref.WeakSet()


class ConnectedGroup:
    """The ranks of a process group, connected for compressed exchanges.

    Making one is collective: every rank of ``process_group`` must do so, in the same order.
    """

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self.rank = process_group.rank()
        self.world_size = process_group.size()
        self._num_handshakes = 0
        self._num_ranks_on_host = 0  # not known yet
        self._store: Store | None = None
        backends: list[Backend] = []
        if self.world_size > 1:
            index = _num_connections.get(process_group, 0)
            _num_connections[process_group] = index + 1
            self._store = PrefixStore(f"fastcomm/{index}", _own_store(process_group))
            backends = _make_backends(process_group, self._store)
        self._communicator = _C.Communicator(backends, NUM_LANES)
        self._threads: dict[int, _C.ThreadPool] = {}
        _open_groups.add(self)

    def threads(self, num_threads: int | None) -> _C.ThreadPool:
        """Return threads that encode and decode a slice together, the lane's own included.

        Args:
            num_threads: how many, at least 1; None: the cores that this host's ranks leave idle
                when each computes with ``torch.get_num_threads()`` threads.
        """
        if num_threads is None:
            num_cores = len(os.sched_getaffinity(0)) // self._count_ranks_on_host()
            num_threads = max(1, num_cores - torch.get_num_threads())
        if num_threads not in self._threads:
            self._threads[num_threads] = _C.ThreadPool(num_threads)
        return self._threads[num_threads]

    def _count_ranks_on_host(self) -> int:
        # Not functools.cached_property: up to Python 3.11 its lock is one for all groups.
        if self._num_ranks_on_host == 0:
            host = socket.gethostname()
            hosts = [host]
            if self._store is not None:
                self._store.set(f"host/{self.rank}", host)
                keys = [f"host/{rank}" for rank in range(self.world_size)]
                hosts = [self._store.get(key).decode() for key in keys]
            self._num_ranks_on_host = hosts.count(host)
        return self._num_ranks_on_host

    def check_agreement(self, settings: dict[str, str]) -> None:
        """Compare ``settings`` between all ranks, before any data flows.

        Raises:
            MismatchError: on every rank, with the same message, if any rank differs.
            Error: if a rank does not answer within the group's timeout.
        """
        if self._store is None:
            return
        prefix = f"handshake/{self._num_handshakes}"
        self._num_handshakes += 1
        self._store.set(f"{prefix}/{self.rank}", json.dumps(settings))
        of_rank = [self._answer(f"{prefix}/{rank}", rank) for rank in range(self.world_size)]
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

    def _answer(self, key: str, rank: int) -> dict[str, str]:
        assert self._store is not None
        try:
            answer: dict[str, str] = json.loads(self._store.get(key))
        except RuntimeError as error:
            raise Error(
                f"rank {rank} of the process group did not compare settings with rank {self.rank}: "
                "it has ended, or it does something else; make the same calls on every rank "
                f"({error})"
            ) from error
        return answer

    def all_reduce(
        self,
        bucket: torch.Tensor,
        residual: torch.Tensor | None,
        plan: _C.BucketPlan,
        factor: float,
        step: int,
        bucket_index: int = 0,
        caller_waits: bool = False,
    ) -> torch.futures.Future[torch.Tensor]:
        """Start ``bucket = factor * sum over ranks``; the future will hold ``bucket``.

        ``caller_waits``: the caller waits at once, so that its own thread may do the work.
        """
        return self._communicator.all_reduce(
            bucket, residual, plan, factor, step & 0xFFFFFFFF, bucket_index & 0xFFFF, caller_waits
        )

    def measurements(self) -> dict[str, float]:
        """Return the native layer's totals: ``wire_bytes`` and ``seconds_…``."""
        return self._communicator.measurements()

    def start_trace(self) -> None:
        """Begin to record what the native threads do."""
        self._communicator.start_trace()

    def stop_trace(self) -> list[tuple[int, int, int, str, float, float, int]]:
        """Return what was recorded; the fields are those of ``_C.Communicator.stop_trace``."""
        return self._communicator.stop_trace()

    def abort(self) -> None:
        """End what is under way with an error, and the native threads."""
        self._communicator.abort()


def choose_algorithm(
    algorithm: str, codec: Codec, world_size: int, runs: list[tuple[int, bool]]
) -> str:
    """Resolve ``auto``: what takes the least time, by the size of a rank's payload.

    The smallest buckets are gathered: their payloads travel with the first message of an exchange,
    to all ranks, which hardly costs time and is one message's latency. Others of more than two
    ranks take two with scatter_gather, where ring would take 2 (N-1). Large buckets take the ring:
    as many bytes, only between neighbours, and slices that overlap best.

    Of sparse payloads gather gives the exact union of what the ranks selected, after one encoding:
    it is used while it costs no more bytes (2 ranks) or hardly any (density below 0.5 %).

    Args:
        algorithm: ``auto``, or what to return.
        codec: the codec of the bucket.
        world_size: number of ranks.
        runs: (num_elements, compressed) for each part of the bucket.
    """
    if algorithm != "auto":
        return algorithm
    num_elements = sum(num for num, _ in runs)
    payload_bytes = _C.payload_bytes(codec.spec, num_elements, runs=runs)
    if payload_bytes <= _C.largest_opening_payload(world_size):
        return "gather"
    density = getattr(codec, "density", 1.0)
    is_sparse = density <= _C.TOPK_LARGEST_SPARSE_DENSITY
    if is_sparse and (world_size <= 2 or density < 0.005):
        return "gather"
    if world_size > 2 and payload_bytes <= _LARGEST_SCATTERED_BYTES:
        return "scatter_gather"
    return "ring"


def _own_store(process_group: dist.ProcessGroup) -> Store:
    """Return the group's store, over a connection of its own if the store can be cloned.

    A store that waits for a key lets no other thread use its connection: threads that make the
    first call of several groups would wait for each other.
    """
    store: Store = process_group.get_group_store()
    try:
        cloned: Store = store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
    except (AttributeError, NotImplementedError, RuntimeError):
        return store
    return cloned


def _make_backends(process_group: dist.ProcessGroup, store: Store) -> list[Backend]:
    """Return new backends over the ranks of ``process_group``, of the kind it has for the CPU."""
    try:
        given = process_group._get_backend(torch.device("cpu"))
    except RuntimeError:
        raise ArgumentError(
            f"the process group ({dist.get_backend(process_group)}) cannot send CPU tensors, and "
            "this fastcomm was built for the CPU only; use "
            'torch.distributed.init_process_group("gloo")'
        ) from None
    timeout = given.options._timeout
    if given.name() == "gloo":
        # Not dist.new_group: it takes all ranks of the job, or (with use_local_synchronization)
        # names the group after how many groups this rank has, which differs between ranks.
        return [
            dist.ProcessGroupGloo(
                PrefixStore(str(index), store),
                process_group.rank(),
                process_group.size(),
                timeout=timeout,
            )
            for index in range(_NUM_GLOO_BACKENDS)
        ]
    ranks = dist.get_process_group_ranks(process_group)
    group = dist.new_group(ranks, timeout, given.name(), use_local_synchronization=True)
    backend: Backend = group._get_backend(torch.device("cpu"))
    return [backend]


def _abort_all() -> None:
    for group in list(_open_groups):
        group.abort()


# The native threads must end before the interpreter does. What is still under way then belongs to
# a run that failed: its other ranks may never answer.
atexit.register(_abort_all)
