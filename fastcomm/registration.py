"""The one-line registration of the hook."""

from typing import Any

from torch.nn.parallel import DistributedDataParallel

from fastcomm._arguments import require_process_group
from fastcomm.codecs import Codec
from fastcomm.ddp_modes import check_ddp_modes
from fastcomm.detached import DetachedHookState
from fastcomm.errors import ArgumentError
from fastcomm.hook import HookState, compress_hook


def register(
    ddp_model: DistributedDataParallel, codec: str | Codec = "int8", **options: Any
) -> HookState:
    """Compress the gradient synchronization of a DDP model. Collective: call it on every rank.

    Args:
        ddp_model: the model, wrapped in DistributedDataParallel.
        codec: a codec or its name; see :func:`fastcomm.codec`.
        **options: further arguments of :class:`HookState`. ``process_group`` is the model's own.

    Returns:
        The state, for its ``stats``, ``state_dict`` and ``flush``.

    Raises:
        ArgumentError: if ``ddp_model`` is not a DDP model, has a hook already, or uses what brings
            its own one (``mixed_precision``, optimizers fused into the backward pass, the Python
            reducer of compiled autograd), or for an argument that cannot work.
        MismatchError: on every rank, if the ranks use different settings.
    """
    if not isinstance(ddp_model, DistributedDataParallel):
        raise ArgumentError(
            f"register() takes a DistributedDataParallel model, got {type(ddp_model).__name__}; "
            "wrap it first: fastcomm.register(DistributedDataParallel(model))"
        )
    require_process_group(None)
    if options.setdefault("process_group", ddp_model.process_group) != ddp_model.process_group:
        raise ArgumentError(
            "process_group is not the one of the DDP model, so that its replicas would diverge; "
            "leave it out, or give it to DistributedDataParallel"
        )
    check_ddp_modes(ddp_model)
    hooks = [hook for hook in ddp_model._comm_hooks if not isinstance(hook[1], DetachedHookState)]
    if hooks:
        raise ArgumentError(
            "the DDP model has a communication hook already; wrap the module in a new "
            "DistributedDataParallel"
        )
    ddp_model._comm_hooks = hooks
    state = HookState(codec, **options)
    state.attach(ddp_model)
    state.connect()
    try:
        ddp_model.register_comm_hook(state, compress_hook)
    except RuntimeError as error:  # PyTorch's built-in hooks leave no other trace
        ddp_model._comm_hooks = []
        raise ArgumentError(
            f"DDP refuses the hook ({error}); wrap the module in a new DistributedDataParallel"
        ) from error
    return state
