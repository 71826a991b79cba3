"""The c10d backends that exchanges use: their own, never the process group's.

A ring uses point-to-point calls only, on a backend of its own, so that its messages can never be
confused with the user's, whichever threads they come from.
"""

from __future__ import annotations

import contextlib
import datetime
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend, PrefixStore, Store

from fastcomm import _C
from fastcomm.errors import ArgumentError
from fastcomm.gloo import Gloo
from fastcomm.sockets import Sockets

# Messages from even ranks use one, those from odd ranks the other. gloo's thread spins while
# another writes to a connection that it wants to read from: in a ring of an even number of ranks,
# each connection then carries payloads in one direction only.
_NUM_GLOO_BACKENDS = 2

# Whether to block, and what communicators that are split off share, is not: c10d makes this one.
_TAKEN_OVER_BY_NCCL = ("cga_cluster_size", "min_ctas", "max_ctas", "net_name")


def store_of(process_group: dist.ProcessGroup) -> Store:
    """Return the group's store.

    Raises:
        ArgumentError: if it has none.
    """
    store: Store | None = process_group.get_group_store()
    if store is None:
        raise ArgumentError(
            f"the process group ({type(process_group).__name__}) has no store, over which ranks "
            "find each other; use one that torch.distributed.init_process_group or new_group makes"
        )
    return store


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
    process_group: dist.ProcessGroup, group_store: Store, store: Store, sockets: Sockets
) -> tuple[list[Backend], datetime.timedelta]:
    """Return new backends over the ranks of ``process_group``, of the kind it has for the CPU.

    And the timeout of the one that it has.

    Args:
        process_group: the ranks.
        group_store: its store.
        store: of the new backends only.
        sockets: gets those of the new backends.
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
    timeout = timeout_of(process_group)
    if given.name() == "gloo":
        gloo = Gloo(given, group_store, process_group.rank(), process_group.size(), timeout)
        return [
            gloo.make(PrefixStore(str(index), store), sockets)
            for index in range(_NUM_GLOO_BACKENDS)
        ], timeout
    ranks = dist.get_process_group_ranks(process_group)
    group = dist.new_group(ranks, timeout, given.name(), use_local_synchronization=True)
    backend: Backend = group._get_backend(torch.device("cpu"))
    return [backend], timeout


def make_nccl_backend(
    process_group: dist.ProcessGroup, store: Store, device: torch.device, name: str
) -> Backend:
    """Return a new NCCL backend over the ranks of ``process_group``, connected. Collective."""
    options = dist.ProcessGroupNCCL.Options()
    options.is_high_priority_stream = True
    given: Any = process_group._get_backend(torch.device("cuda")).options
    options._timeout = given._timeout
    for name in _TAKEN_OVER_BY_NCCL:
        value = getattr(given.config, name, None)
        if value is not None:
            setattr(options.config, name, value)
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
