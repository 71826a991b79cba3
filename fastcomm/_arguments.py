"""Checks of what callers pass, with messages that name the value and the fix."""

import functools

import torch
import torch.distributed as dist

from fastcomm import _C
from fastcomm.errors import ArgumentError, Error

_SMALLEST_CAPABILITY = (8, 0)  # warp-wide reductions
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(tensor: torch.Tensor, what: str) -> None:
    """Raise :class:`ArgumentError` unless ``tensor`` can be encoded on this machine."""
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(f"{what} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise ArgumentError(
            f"{what} has layout {tensor.layout}, which cannot be compressed; "
            "use dense gradients (for embeddings: sparse=False)"
        )
    if tensor.dtype not in _DTYPES:
        raise ArgumentError(
            f"{what} has dtype {tensor.dtype}; fastcomm reduces float32, bfloat16 and float16. "
            "Convert it, or use torch.distributed.all_reduce"
        )
    check_device(tensor, what)
    if not tensor.is_contiguous():
        raise ArgumentError(f"{what} is not contiguous; pass {what}.contiguous()")


def check_parameter(name: str, parameter: torch.Tensor) -> None:
    """Raise :class:`ArgumentError` if gradients of a parameter cannot be exchanged."""
    dtype = parameter.real.dtype if parameter.is_complex() else parameter.dtype
    if dtype not in _DTYPES:
        raise ArgumentError(
            f"the parameter {name!r} has dtype {parameter.dtype}; fastcomm reduces float32, "
            "bfloat16, float16 and complex64. Convert the model (model.float()), or leave such "
            "parameters out of its DistributedDataParallel (parameters_to_ignore)"
        )


def check_device(tensor: torch.Tensor, what: str) -> None:
    """Raise :class:`ArgumentError` unless ``tensor`` is where this fastcomm can work."""
    if tensor.device.type == "cpu":
        return
    if _C.has_cuda and tensor.device.type == "cuda":
        capability = _compute_capability(tensor.device.index)
        if capability < _SMALLEST_CAPABILITY:
            raise ArgumentError(
                f"{what} is on {tensor.device}, a GPU of compute capability "
                f"{capability[0]}.{capability[1]}; fastcomm's kernels need "
                f"{_SMALLEST_CAPABILITY[0]}.{_SMALLEST_CAPABILITY[1]}. Move it to the CPU"
            )
        return
    if _C.has_cuda:
        raise ArgumentError(
            f"{what} is on {tensor.device}, but this fastcomm was built for the CPU and for CUDA; "
            "move it to one of them"
        )
    raise ArgumentError(
        f"{what} is on {tensor.device}, but this fastcomm was built for the CPU only; "
        "move it to the CPU, or rebuild fastcomm where nvcc and a CUDA torch are installed"
    )


@functools.cache
def _compute_capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def check_residual(residual: torch.Tensor | None, tensor: torch.Tensor) -> None:
    """Raise :class:`ArgumentError` unless ``residual`` can be the residual of ``tensor``."""
    if residual is None:
        return
    check_tensor(residual, "residual")
    if residual.dtype != torch.float32 or residual.numel() != tensor.numel():
        raise ArgumentError(
            f"residual has {residual.numel()} elements of {residual.dtype}; it must have "
            f"{tensor.numel()} elements of torch.float32, as the tensor has {tensor.numel()}"
        )
    if residual.device != tensor.device:
        raise ArgumentError(
            f"residual is on {residual.device}, its tensor on {tensor.device}; "
            f"use residual.to({str(tensor.device)!r})"
        )


def require_process_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return ``group``, or the default group for None.

    Raises:
        Error: if torch.distributed is not initialized, or this rank is not in the group.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise Error(
            "the default process group is not initialized; call "
            'torch.distributed.init_process_group("gloo") first, '
            "and start the script with torchrun"
        )
    if group is None:
        default = dist.group.WORLD
        assert default is not None
        return default
    if not isinstance(group, dist.ProcessGroup):
        raise ArgumentError(
            f"rank {dist.get_rank()} is not in the given process group ({group!r}); "
            "call this only on the ranks of the group"
        )
    return group


def check_num_threads(num_threads: int | None) -> None:
    """Raise :class:`ArgumentError` unless ``num_threads`` is None or at least 1."""
    if num_threads is not None and num_threads < 1:
        raise ArgumentError(f"codec_threads {num_threads} is less than 1; leave it out, or use 1")
