"""The c10d backends that exchanges use: their own, never the process group's.

A ring uses point-to-point calls only, on a backend of its own, so that its messages can never be
confused with the user's, whichever threads they come from.
"""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Backend, PrefixStore, Store

from fastcomm import _C
from fastcomm.errors import ArgumentError

# Messages from even ranks use one, those from odd ranks the other. gloo's thread spins while
# another writes to a connection that it wants to read from: in a ring of an even number of ranks,
# each connection then carries payloads in one direction only.
_NUM_GLOO_BACKENDS = 2


def own_store(process_group: dist.ProcessGroup) -> Store:
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
    process_group: dist.ProcessGroup, store: Store
) -> tuple[list[Backend], datetime.timedelta]:
    """Return new backends over the ranks of ``process_group``, of the kind it has for the CPU.

    And the timeout of the one that it has.
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
        backends: list[Backend] = [
            dist.ProcessGroupGloo(
                PrefixStore(str(index), store),
                process_group.rank(),
                process_group.size(),
                timeout=timeout,
            )
            for index in range(_NUM_GLOO_BACKENDS)
        ]
        return backends, timeout
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
