"""What DDP can be told to do that leaves no place for a communication hook.

``fastcomm.register`` names it. PyTorch's own ``register_comm_hook`` raises in most of these cases,
too, but says only that there can be one hook.
"""

from torch.nn.parallel import DistributedDataParallel

from fastcomm.errors import ArgumentError

USE_BUCKETS = (
    'set torch._dynamo.config.optimize_ddp = "ddp_optimizer" before the model is wrapped in '
    "DistributedDataParallel"
)


def check_ddp_modes(ddp_model: DistributedDataParallel) -> None:
    """Raise :class:`ArgumentError` if DDP would not call a hook of ours for its buckets."""
    if ddp_model.mixed_precision is not None:
        raise ArgumentError(
            "DistributedDataParallel(mixed_precision=...) brings its own hook; use torch.autocast"
        )
    if any(hasattr(parameter, "_in_backward_optimizers") for parameter in ddp_model.parameters()):
        raise ArgumentError(
            "the parameters have an optimizer that steps in the backward pass, for which DDP "
            "brings its own hook; use an optimizer that steps afterwards instead of "
            "_apply_optimizer_in_backward"
        )
    if ddp_model._use_python_reducer:
        raise ArgumentError(
            "DDP synchronizes each parameter for itself here, in its Python reducer for compiled "
            f"autograd; {USE_BUCKETS}"
        )
