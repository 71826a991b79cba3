"""Parameters as they lie in DDP's buckets: one behind the other, complex ones as pairs of reals."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def real_shape(parameter: torch.Tensor) -> torch.Size:
    """Return a parameter's shape, with a last dimension of 2 if it is complex."""
    return torch.Size([*parameter.shape, 2]) if parameter.is_complex() else parameter.shape


def num_elements(parameter: torch.Tensor) -> int:
    """Return how many real numbers a parameter is."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def split_by_parameter(
    bucket: torch.Tensor, parameters: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Return what is in a bucket for each of its parameters, flat."""
    return torch.split(bucket.view(-1), [num_elements(parameter) for parameter in parameters])


def as_real(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient; that of a complex parameter with a last dimension of both parts."""
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def shaped_as(parameter: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """Return what is in a bucket with the real shape of its parameter, as DDP lays it out there."""
    sizes, strides = real_shape(parameter), parameter.stride()
    if parameter.is_complex():
        strides = (*(2 * stride for stride in strides), 1)
    reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if reach != flat.numel():
        return flat.view(sizes)
    return flat.as_strided(sizes, strides, flat.storage_offset())
