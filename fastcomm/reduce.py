"""A compressed drop-in for torch.distributed.all_reduce."""

from __future__ import annotations

import weakref

import torch
import torch.distributed as dist

from fastcomm import _C
from fastcomm._arguments import (
    check_num_threads,
    check_residual,
    check_tensor,
    require_process_group,
)
from fastcomm.algorithms import check_algorithm
from fastcomm.codecs import Codec, Fp32
from fastcomm.codecs import codec as parse_codec
from fastcomm.errors import ArgumentError
from fastcomm.group import NUM_LANES, ConnectedGroup
from fastcomm.waiting import is_interruptible, wait_for


class Work:
    """An all-reduce under way, as ``async_op=True`` returns it."""

    def __init__(self, future: torch.futures.Future[torch.Tensor]) -> None:
        self._future = future

    def wait(self) -> bool:
        """Block until the result is in the tensor; the process group's timeout bounds the wait.

        On a GPU, what is enqueued on the current stream from now on has the result; over NCCL
        nothing blocks.
        """
        wait_for(self._future)
        return True

    def is_completed(self) -> bool:
        """Return whether the all-reduce is over; on a GPU, whether all of it is enqueued."""
        return self._future.done()

    def get_future(self) -> torch.futures.Future[torch.Tensor]:
        """Return a future that holds the tensor.

        Callbacks given to its ``then`` run on a native thread, which does nothing else meanwhile:
        they must not wait for another exchange.
        """
        return self._future


class _Connection:
    """What all_reduce keeps for a process group."""

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self.group = ConnectedGroup(process_group)
        self.plans: dict[tuple[Codec, str, _C.ThreadPool | None], _C.BucketPlan] = {}
        self.num_calls = 0
        self.agreed: set[tuple[object, ...]] = set()

    def plan(
        self, codec: Codec, algorithm: str, tensor: torch.Tensor, codec_threads: int | None
    ) -> _C.BucketPlan:
        """Return the plan of a call; on the first one the ranks compare notes.

        Later calls are compared by the native layer, with the first message of each; or here,
        where there is no such message.
        """
        subject: tuple[object, ...] = (self.group.engine(tensor.device),)
        if not self.group.compares_calls(tensor.device):
            subject += (codec, algorithm, tensor.numel())
        if subject not in self.agreed:
            self.group.connect(tensor.device)
            self.group.check_agreement(
                {
                    "codec": str(codec),
                    "algorithm": algorithm,
                    "tensor": f"{tensor.numel()} elements of {tensor.dtype}",
                }
            )
            self.agreed.add(subject)
        algorithm = self.group.algorithm(algorithm, [(tensor.numel(), codec)], tensor.device)
        threads = self.group.threads(codec_threads, tensor.device)
        key = (codec, algorithm, threads)
        if key not in self.plans:
            self.plans[key] = _C.BucketPlan([codec.spec], [], algorithm, threads)
        return self.plans[key]


_connections: weakref.WeakKeyDictionary[dist.ProcessGroup, _Connection] = (
    weakref.WeakKeyDictionary()
)


def all_reduce(
    tensor: torch.Tensor,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    codec: str | Codec = "int8",
    residual: torch.Tensor | None = None,
    algorithm: str = "auto",
    codec_threads: int | None = None,
) -> Work | None:
    """Reduce ``tensor`` over all ranks, in place, sending it compressed.

    Collective, like ``torch.distributed.all_reduce``: every rank of the group calls it, in the same
    order, with the same shape, codec and algorithm. All ranks end with the same bits.

    Args:
        tensor: contiguous tensor of float32, bfloat16 or float16, on the CPU or a CUDA device (over
            NCCL where the group has it, else through host memory); receives the result.
        op: ``ReduceOp.SUM`` or ``ReduceOp.AVG``.
        group: the process group; None: the default one.
        async_op: return a :class:`Work` at once instead of waiting.
        codec: a codec or its name; see :func:`fastcomm.codec`.
        residual: contiguous float32 tensor of as many elements on the same device: this rank's
            error feedback
            ("Encoding a block" in docs/wire_format.md), added before encoding, updated in place.
            None: what the codec leaves out is lost.
        algorithm: ``ring``, ``gather``, ``scatter_gather`` or ``auto``.
        codec_threads: how many threads of this rank encode and decode a slice together; results do
            not depend on it. None: the cores that the ranks of this host leave idle, at least 1.

    Returns:
        A :class:`Work` if ``async_op``, else None.

    Raises:
        ArgumentError: for an argument that cannot work, before anything is sent.
        MismatchError: if the ranks use different codecs or algorithms.
        Error: if the exchange fails.
    """
    process_group = require_process_group(group)
    check_tensor(tensor, "tensor")
    check_residual(residual, tensor)
    codec = parse_codec(codec)
    codec.check_error_feedback(residual is not None)
    check_algorithm(algorithm)
    check_num_threads(codec_threads)
    if op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
        raise ArgumentError(f"op {op} is not supported; use ReduceOp.SUM or ReduceOp.AVG")

    connection = _connections.get(process_group)
    if connection is None:
        connection = _connections[process_group] = _Connection(process_group)
    world_size = connection.group.world_size
    plan = connection.plan(codec if world_size > 1 else Fp32(), algorithm, tensor, codec_threads)
    factor = 1.0 / world_size if op == dist.ReduceOp.AVG else 1.0
    call = connection.num_calls
    connection.num_calls += 1
    future = connection.group.all_reduce(
        tensor.detach(),
        residual,
        plan,
        factor,
        step=call,
        bucket_index=call % NUM_LANES,
        # A thread that does the work itself, as it would only wait, cannot be interrupted.
        caller_waits=not async_op and not is_interruptible(),
    )
    work = Work(future)
    if async_op:
        return work
    work.wait()
    return None


def measurements(group: dist.ProcessGroup | None = None) -> dict[str, float]:
    """Return what :func:`all_reduce` did on this rank so far: ``wire_bytes`` and ``seconds_…``.

    Empty if it was not called with this group yet. The keys are explained at :class:`Stats`.
    """
    connection = _connections.get(require_process_group(group))
    return {} if connection is None else connection.group.measurements()
