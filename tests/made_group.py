"""A process group of gloo as c10d makes it, of parts that c10d does not let one choose."""

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store


def made_group(store: Store, gloo_store: Store, options: Any) -> dist.ProcessGroup:
    """Return a group of all ranks.

    Args:
        store: of the group.
        gloo_store: where gloo finds the other ranks.
        options: of gloo.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    group = dist.ProcessGroup(store, rank, world_size)
    gloo: Any = dist.ProcessGroupGloo
    backend = gloo(gloo_store, rank, world_size, options)
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
    return group
