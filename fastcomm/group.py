"""A connected group of ranks: what exchanges their tensors."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import weakref

import torch
import torch.distributed as dist

from fastcomm import _C
from fastcomm.algorithms import choose_algorithm
from fastcomm.backends import make_host_backends, make_nccl_backend, store_of, timeout_of, uses_nccl
from fastcomm.connecting import Connecting
from fastcomm.cores import count_cores
from fastcomm.handshake import Handshake, check_same
from fastcomm.rendezvous import Rendezvous
from fastcomm.runs import Runs
from fastcomm.sockets import Sockets

# Exchanges in flight at a time: one encodes while another is on the wire.
NUM_LANES = 2

# How long a rank that ends waits for what it has enqueued over NCCL, and for the other ranks.
_SECONDS_TO_FINISH = 30.0

# How many connections each process group has so far: the same on all of its ranks.
_num_connections: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()
_open_groups: weakref.WeakSet[ConnectedGroup] = weakref.WeakSet()


class ConnectedGroup:
    """The ranks of a process group, connected for compressed exchanges.

    Making one is collective: every rank of ``process_group`` must do so, in the same order.

    Tensors are exchanged in one of two ways, of which a group that has both may use both:

    - ``gloo`` (or what else the group has for the CPU): native threads, messages in host memory.
      Each rank's tensors may be on the CPU or on a GPU.
    - ``nccl``, for CUDA tensors of a group that has it: enqueued on CUDA streams.
    """

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self.rank = process_group.rank()
        self.world_size = process_group.size()
        # Not a strong reference: what belongs to a process group must not keep it alive.
        self._process_group = weakref.ref(process_group)
        self._name = "fastcomm"
        self._ranks: Rendezvous | None = None
        self._handshake: Handshake | None = None
        if self.world_size > 1:
            index = _num_connections.get(process_group, 0)
            _num_connections[process_group] = index + 1
            self._name = f"fastcomm/{index}"
            self._ranks = Rendezvous(
                store_of(process_group),
                self._name,
                self.rank,
                self.world_size,
                timeout_of(process_group).total_seconds(),
            )
            check_same([{"fastcomm": version} for version in self._ranks.versions])
            self._handshake = Handshake(self._ranks)
        self._uses_nccl = uses_nccl(process_group) if self.world_size > 1 else _C.has_cuda
        self._communicators: dict[str, _C.Communicator | _C.StreamCommunicator] = {}
        self._sockets = Sockets()
        self._is_traced = False
        self._is_finished = False
        self._threads: dict[int, _C.ThreadPool] = {}
        if not self._uses_nccl:
            self.connect(torch.device("cpu"))
        _open_groups.add(self)

    def engine(self, device: torch.device) -> str:
        """Return what exchanges tensors on ``device``: ``nccl`` or ``gloo``."""
        return "nccl" if self._uses_nccl and device.type == "cuda" else "gloo"

    def compares_calls(self, device: torch.device) -> bool:
        """Return whether exchanges begin with messages in which ranks compare what they do.

        Over NCCL they do not, because the host would have to wait: use ``check_agreement`` before
        every call with arguments that were not compared yet.
        """
        return self.engine(device) != "nccl"

    def connect(self, device: torch.device) -> None:
        """Connect the ranks for tensors on ``device``, before anything else is asked about them.

        Collective the first time. Does nothing if that was done already.

        Raises:
            MismatchError: if only some ranks' tensors are on a GPU, and these would go over NCCL.
        """
        self._communicator(device)

    def _communicator(self, device: torch.device) -> _C.Communicator | _C.StreamCommunicator:
        engine = self.engine(device)
        if engine not in self._communicators:
            self._communicators[engine] = self._connect(engine, device)
            if self._is_traced:
                self._communicators[engine].start_trace()
        return self._communicators[engine]

    def _connect(
        self, engine: str, device: torch.device
    ) -> _C.Communicator | _C.StreamCommunicator:
        if self._uses_nccl:  # there is a choice, which every rank makes for itself
            self.check_agreement({"device": "CUDA" if engine == "nccl" else "CPU"})
        process_group = self._process_group()
        if self._ranks is None:
            if engine == "nccl":
                return _C.StreamCommunicator(None, device)
            return _C.Communicator([], NUM_LANES, datetime.timedelta())
        assert process_group is not None
        group_store = self._ranks.group_store
        connecting = Connecting(self._ranks, engine)
        if engine == "nccl":
            backend = connecting.run(
                lambda store: make_nccl_backend(process_group, store, device, self._name)
            )
            return _C.StreamCommunicator(backend, device)
        backends, timeout = connecting.run(
            lambda store: make_host_backends(process_group, group_store, store, self._sockets)
        )
        return _C.Communicator(backends, NUM_LANES, timeout)

    def algorithm(self, algorithm: str, runs: Runs, device: torch.device) -> str:
        """Resolve ``auto`` for a bucket on ``device``; see :func:`choose_algorithm`."""
        return choose_algorithm(algorithm, runs, self.world_size, self.compares_calls(device))

    def threads(self, num_threads: int | None, device: torch.device) -> _C.ThreadPool | None:
        """Return threads that encode and decode a slice together, the lane's own included.

        Args:
            num_threads: how many, at least 1; None: the cores that this host's ranks leave idle
                when each computes with ``torch.get_num_threads()`` threads.
            device: where the bucket is. None are returned for what has no native threads.
        """
        if self.engine(device) == "nccl":
            return None
        if num_threads is None:
            num_cores = count_cores() // self._count_ranks_on_host()
            num_threads = max(1, num_cores - torch.get_num_threads())
        if num_threads not in self._threads:
            self._threads[num_threads] = _C.ThreadPool(num_threads)
        return self._threads[num_threads]

    def _count_ranks_on_host(self) -> int:
        return 1 if self._ranks is None else self._ranks.hosts.count(self._ranks.hosts[self.rank])

    def check_agreement(self, settings: dict[str, str]) -> None:
        """Compare ``settings`` between all ranks, before any data flows.

        Raises:
            MismatchError: on every rank, with the same message, if any rank differs.
            PeerError: if a rank has ended, or does not answer within the group's timeout.
        """
        if self._handshake is not None:
            self._handshake.check_agreement(settings, self._host_lanes())

    def _host_lanes(self) -> _C.Communicator | None:
        communicator = self._communicators.get("gloo")
        return communicator if isinstance(communicator, _C.Communicator) else None

    def all_reduce(
        self,
        bucket: torch.Tensor,
        residual: torch.Tensor | None,
        plan: _C.BucketPlan,
        factor: float,
        step: int,
        bucket_index: int = 0,
        caller_waits: bool = False,
        velocity: torch.Tensor | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> torch.futures.Future[torch.Tensor]:
        """Start ``bucket = factor * sum over ranks``; the future will hold ``bucket``.

        ``caller_waits``: the caller waits at once, so that its own thread may do the work.
        ``velocity``: adds the gradient to it first, times ``momentum``, and sends that instead.
        """
        step, bucket_index = step & 0xFFFFFFFF, bucket_index & 0xFFFF
        correction = (velocity, momentum, nesterov)
        return self._communicator(bucket.device).all_reduce(
            bucket, residual, plan, factor, step, bucket_index, caller_waits, *correction
        )

    def measurements(self) -> dict[str, float]:
        """Return the native layer's totals: ``wire_bytes`` and ``seconds_…``."""
        totals: dict[str, float] = {}
        for communicator in self._communicators.values():
            for key, value in communicator.measurements().items():
                totals[key] = totals.get(key, 0) + value
        return totals

    def start_trace(self) -> None:
        """Begin to record what the native layer does."""
        self._is_traced = True
        for communicator in self._communicators.values():
            communicator.start_trace()

    def stop_trace(self) -> list[tuple[int, int, int, str, float, float, int]]:
        """Return what was recorded; the fields are those of ``_C.Communicator.stop_trace``."""
        self._is_traced = False
        return [event for c in self._communicators.values() for event in c.stop_trace()]

    def abort(self) -> None:
        """End what is under way with an error, and the native threads.

        What was enqueued over NCCL without an error is finished first: the calls returned before
        it ran.
        """
        self._finish()
        for communicator in self._communicators.values():
            communicator.abort()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # also if __init__ failed
            self._finish()

    def _finish(self) -> None:
        """Wait for what NCCL has to do, here and on the others, which need what this rank sends."""
        communicator = self._communicators.get("nccl")
        if self._is_finished or not isinstance(communicator, _C.StreamCommunicator):
            return
        self._is_finished = True
        if communicator.finish(_SECONDS_TO_FINISH) and self._ranks is not None:
            with contextlib.suppress(RuntimeError):  # a rank is gone, or the store is
                self._ranks.share("finished", "", _SECONDS_TO_FINISH)


def _abort_all() -> None:
    for group in list(_open_groups):
        group.abort()


# The native threads must end before the interpreter does. What is still under way then belongs to
# a run that failed: its other ranks may never answer.
atexit.register(_abort_all)
