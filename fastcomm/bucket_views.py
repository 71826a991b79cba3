"""Parameters as they lie in DDP's buckets."""

import torch


def shaped_as(parameter: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
    """Return what is in a bucket with the shape of its parameter, as DDP lays it out there."""
    sizes, strides = parameter.size(), parameter.stride()
    reach = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if reach != flat.numel():
        return flat.view(sizes)
    return flat.as_strided(sizes, strides, flat.storage_offset())
