"""The c10d backends that exchanges use: their own, never the process group's.

A ring uses point-to-point calls only, on a backend of its own, so that its messages can never be
confused with the user's, whichever threads they come from.
"""

from __future__ import annotations

import contextlib
import datetime
import functools

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend, PrefixStore, Store

from fastcomm import _C
from fastcomm.errors import ArgumentError
from fastcomm.sockets import OpenSocket, Snapshot, Sockets

# Messages from even ranks use one, those from odd ranks the other. gloo's thread spins while
# another writes to a connection that it wants to read from: in a ring of an even number of ranks,
# each connection then carries payloads in one direction only.
_NUM_GLOO_BACKENDS = 2


def timeout_of(process_group: dist.ProcessGroup) -> datetime.timedelta:
    """Return how long the group waits for a rank."""
    for device in ("cpu", "cuda"):
        with contextlib.suppress(RuntimeError, AttributeError):
            backend = process_group._get_backend(torch.device(device))
            timeout: datetime.timedelta = backend.options._timeout
            return timeout
    return dist.distributed_c10d.default_pg_timeout


def uses_nccl(process_group: dist.ProcessGroup) -> bool:
    """Return whether the group sends CUDA tensors over NCCL, and this fastcomm can do so, too."""
    if not _C.has_cuda:
        return False
    try:
        given = process_group._get_backend(torch.device("cuda"))
    except RuntimeError:
        return False
    return given.name() == "nccl"


def make_host_backends(
    process_group: dist.ProcessGroup, store: Store, sockets: Sockets
) -> tuple[list[Backend], datetime.timedelta]:
    """Return new backends over the ranks of ``process_group``, of the kind it has for the CPU.

    And the timeout of the one that it has. ``sockets`` gets those of the new ones.
    """
    try:
        given = process_group._get_backend(torch.device("cpu"))
    except RuntimeError:
        name = dist.get_backend(process_group)
        if _C.has_cuda:
            raise ArgumentError(
                f"the process group ({name}) cannot send CPU tensors; move them to the GPU, or use "
                'torch.distributed.init_process_group("cpu:gloo,cuda:nccl")'
            ) from None
        raise ArgumentError(
            f"the process group ({name}) cannot send CPU tensors, and "
            "this fastcomm was built for the CPU only; use "
            'torch.distributed.init_process_group("gloo")'
        ) from None
    timeout = given.options._timeout
    if given.name() == "gloo":
        # Not dist.new_group: it takes all ranks of the job, or (with use_local_synchronization)
        # names the group after how many groups this rank has, which differs between ranks.
        rank, world_size = process_group.rank(), process_group.size()
        before = Snapshot()
        backends: list[Backend] = [
            dist.ProcessGroupGloo(PrefixStore(str(i), store), rank, world_size, timeout=timeout)
            for i in range(_NUM_GLOO_BACKENDS)
        ]
        for index in range(_NUM_GLOO_BACKENDS):
            prefix = PrefixStore(str(index), store)
            addresses = [gloo_address(prefix, other) for other in range(world_size)]
            sockets.keep(before.opened_since(functools.partial(_is_among, rank, addresses)))
        return backends, timeout
    ranks = dist.get_process_group_ranks(process_group)
    group = dist.new_group(ranks, timeout, given.name(), use_local_synchronization=True)
    backend: Backend = group._get_backend(torch.device("cpu"))
    return [backend], timeout


def gloo_address(store: Store, rank: int) -> bytes:
    """Return where a rank listens, among other bytes, as gloo has written it into its store."""
    key = f"0/{rank}"  # of the first of its devices
    return store.get(key) if store.check([key]) else b""


def _is_among(rank: int, addresses: list[bytes], opened: OpenSocket) -> bool:
    """Return whether a socket of ``rank`` listens, or was accepted, or connects there."""
    if opened.local in addresses[rank]:
        return True
    return bool(opened.remote) and any(opened.remote in address for address in addresses)


def make_nccl_backend(
    process_group: dist.ProcessGroup, store: Store, device: torch.device, name: str
) -> Backend:
    """Return a new NCCL backend over the ranks of ``process_group``, connected. Collective."""
    options = dist.ProcessGroupNCCL.Options()
    options.is_high_priority_stream = True
    options._timeout = process_group._get_backend(torch.device("cuda")).options._timeout
    options.global_ranks_in_group = dist.get_process_group_ranks(process_group)
    # Unique in the job: c10d's watchdog takes backends of one name for the same.
    name = f"{process_group.group_name}/{name}"
    options.group_name = name  # type: ignore[assignment]  # a string of a type of its own
    backend = dist.ProcessGroupNCCL(
        PrefixStore("nccl", store), process_group.rank(), process_group.size(), options
    )
    # Now, and not in the middle of the first exchange, when only some ranks may be there.
    with torch.cuda.device(device):
        backend.eager_connect_single_device(device)
    return backend
