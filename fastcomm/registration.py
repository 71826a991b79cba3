"""The one-line registration of the hook."""

from typing import Any

from torch import nn

from fastcomm.codecs import Codec
from fastcomm.ddp_modes import check_ddp_modes
from fastcomm.detached import DetachedHookState
from fastcomm.errors import ArgumentError
from fastcomm.hook import HookState, compress_hook
from fastcomm.wrapped_models import require_ddp


def register(model: nn.Module, codec: str | Codec = "int8", **options: Any) -> HookState:
    """Compress the gradient synchronization of a DDP model. Collective: call it on every rank.

    Args:
        model: the model in DistributedDataParallel, or what wraps that (``torch.compile``, Fabric,
            Accelerate), or a module under the composable ``replicate``.
        codec: a codec or its name; see :func:`fastcomm.codec`.
        **options: further arguments of :class:`HookState`. ``process_group`` is the model's own.

    Returns:
        The state, for its ``stats``, ``state_dict`` and ``flush``.

    Raises:
        ArgumentError: if ``model`` holds no DDP model or several, has a hook already, or uses what
            brings its own one (``mixed_precision``, optimizers fused into the backward pass, the
            Python reducer of compiled autograd), or for an argument that cannot work.
        MismatchError: on every rank, if the ranks use different settings.
    """
    ddp_model = require_ddp(model)
    check_ddp_modes(ddp_model)
    hooks = [hook for hook in ddp_model._comm_hooks if not isinstance(hook[1], DetachedHookState)]
    if hooks:
        raise ArgumentError(
            "the DDP model has a communication hook already; wrap the module in a new "
            "DistributedDataParallel"
        )
    ddp_model._comm_hooks = hooks
    state = HookState(codec, **options)
    state.attach(model)
    state.connect()
    try:
        ddp_model.register_comm_hook(state, compress_hook)
    except RuntimeError as error:  # PyTorch's built-in hooks leave no other trace
        ddp_model._comm_hooks = []
        raise ArgumentError(
            f"DDP refuses the hook ({error}); wrap the module in a new DistributedDataParallel"
        ) from error
    return state
