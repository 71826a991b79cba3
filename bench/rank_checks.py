"""What the ranks of a benchmark know and compare: exact averages, the slowest time, equal bits."""

from __future__ import annotations

import zlib
from typing import Any

import torch
import torch.distributed as dist

# Gradients repeat after so many elements (a prime: no block or slice sees the same twice), which
# makes their exact average cheap to know on every rank.
_PERIOD = 1_000_003


class KnownGradients:
    """Random gradients of every rank, and their exact average.

    Attributes:
        mine: this rank's gradient, of ``num_elements`` elements of float32.
        average: the exact average of all ranks' in float64, which repeats after its end.
    """

    def __init__(self, rank: int, world_size: int, num_elements: int) -> None:
        period = min(_PERIOD, num_elements)
        base = torch.randn(period, generator=torch.Generator().manual_seed(0))
        shifted = [base.roll(r * 1009) for r in range(world_size)]
        self.average = torch.stack(shifted).double().mean(0)
        self.mine = shifted[rank].repeat(-(-num_elements // period))[:num_elements].clone()

    def squared_error(self, result: torch.Tensor, scale: float = 1) -> tuple[float, float]:
        """Return the squared norms of ``result - scale * average`` and of ``scale * average``."""
        error = norm = 0.0
        for piece in torch.split(result.flatten(), len(self.average)):
            expected = self.average[: piece.numel()] * scale
            error += float((piece.double() - expected).square().sum())
            norm += float(expected.square().sum())
        return error, norm


def slowest(seconds: list[float]) -> list[float]:
    """Return, for each value, the largest of all ranks."""
    values = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [float(value) for value in values]


def all_identical(tensors: list[torch.Tensor]) -> bool:
    """Return whether all ranks hold the same bits."""
    checksum = 0
    for tensor in tensors:
        checksum = zlib.crc32(tensor.contiguous().numpy().data, checksum)
    checksums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(checksums, checksum)
    return len(set(checksums)) == 1
