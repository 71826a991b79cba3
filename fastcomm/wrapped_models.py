"""The DDP model inside of what a user's program calls its model.

Wrappers hold the DDP model as a submodule: ``torch.compile(ddp)``, Fabric's and Accelerate's. The
composable ``replicate`` keeps it beside the module, and makes it as late as in the first forward
pass. Other ways to train in parallel have no place for a DDP hook; a sentence for each says so.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastcomm.errors import ArgumentError

_SHARDED = (
    "fastcomm compresses the all-reduce of replicated models, not yet the reduce-scatter of "
    "sharded ones: train it without fastcomm, or, if each device can hold all of it, take the "
    "sharding out and use DistributedDataParallel(module)"
)
# By the name of a class of PyTorch, or of a well-known library: it is not imported for this.
_OTHERS = {
    "FullyShardedDataParallel": f"is sharded by FullyShardedDataParallel (FSDP1). {_SHARDED}",
    "ReplicateModule": (
        "is replicated by the replicate() that is built on FSDP2, which takes no hook; use "
        "torch.distributed._composable.replicate or DistributedDataParallel(module)"
    ),
    "FSDPModule": f"is sharded by fully_shard (FSDP2). {_SHARDED}",
    "DataParallel": (
        "is a DataParallel model, which trains in one process, without a process group; start one "
        "process for each device with torchrun and use DistributedDataParallel(module)"
    ),
    "DeepSpeedEngine": (
        "belongs to DeepSpeed, which averages gradients itself and takes no hook; use "
        "DistributedDataParallel(module)"
    ),
}


def ddp_in(model: nn.Module) -> DistributedDataParallel | None:
    """Return the DDP model that ``model`` is, holds or is trained by; None if there is none.

    Of a module under the composable ``replicate`` the DDP model is made now, if it was not yet:
    collective, as making a DDP model is.

    Raises:
        ArgumentError: if it holds several.
    """
    if isinstance(model, DistributedDataParallel):
        return model
    found = {id(ddp): ddp for ddp in map(_ddp_of, model.modules()) if ddp is not None}
    if len(found) > 1:
        names = [name for name, part in model.named_modules() if _ddp_of(part) is not None]
        raise ArgumentError(
            f"the {type(model).__name__} holds {len(found)} DistributedDataParallel models "
            f"({', '.join(names)}); call fastcomm.register for each of them"
        )
    return next(iter(found.values()), None)


def require_ddp(model: object) -> DistributedDataParallel:
    """Return the DDP model in ``model``; see :func:`ddp_in`.

    Raises:
        ArgumentError: if there is none, or several, with what to do instead.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"register() takes a model in DistributedDataParallel, got {type(model).__name__}; "
            "pass the model itself"
        )
    ddp = ddp_in(model)
    if ddp is not None:
        return ddp
    classes = [
        cls.__name__
        for part in model.modules()
        for cls in type(part).__mro__
        if cls.__module__.split(".")[0] in ("torch", "deepspeed")
    ]
    for name, sentence in _OTHERS.items():
        if name in classes:
            raise ArgumentError(f"the {type(model).__name__} {sentence}")
    raise ArgumentError(
        f"the {type(model).__name__} is not in DistributedDataParallel, nor does it hold a model "
        "that is; pass the DistributedDataParallel model, not the module in it, or wrap it first: "
        "fastcomm.register(DistributedDataParallel(module))"
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module whose names for its parameters are the user's, without wrappers' prefixes.

    Raises:
        ArgumentError: if ``model`` holds several DDP models.
    """
    ddp = ddp_in(model)
    if ddp is None:
        return model
    replicated = [part for part in model.modules() if _replicate_state(part) is not None]
    module: nn.Module = replicated[0] if replicated else ddp.module
    return module


def _ddp_of(module: nn.Module) -> DistributedDataParallel | None:
    if isinstance(module, DistributedDataParallel):
        return module
    state = _replicate_state(module)
    if state is None:
        return None
    if not state.has_initialized:
        state.lazy_init()
    ddp: DistributedDataParallel = state._ddp
    return ddp


def _replicate_state(module: nn.Module) -> Any:
    """Return what the composable ``replicate`` keeps for a module; None if it was not called."""
    # Its class comes first in that of the module.
    if not any(
        cls.__module__ == "torch.distributed._composable.replicate" for cls in type(module).__mro__
    ):
        return None
    from torch.distributed._composable.replicate import replicate

    return replicate.state(module)
