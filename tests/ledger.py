"""Books on an all-reduce: what went in, what came out, and what the residuals hold."""

import hashlib

import torch
import torch.distributed as dist
from torch.nn.functional import pad


def gradient(num_elements: int, step: int = 0, rank: int | None = None) -> torch.Tensor:
    """Return the made-up gradient of a rank (None: this one): normal, a little different a step."""
    rank = dist.get_rank() if rank is None else rank
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(num_elements, generator=generator)


def sum_over_ranks(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Return the sum of a tensor over all ranks in float64, by torch's own all-reduce."""
    total = tensor.double()
    dist.all_reduce(total, group=group)
    return total


def conservation_error(
    delivered: torch.Tensor,
    gradient: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    block: int = 1,
) -> float:
    """Return the largest relative violation, over the elements, of the conservation law.

    delivered + sum of residuals after = sum of gradients + sum of residuals before. Relative to the
    element's own magnitude, or to the largest one in its block, for codecs that rotate blocks.
    Collective.
    """
    if delivered.numel() == 0:
        return 0.0
    entries = [t.double().flatten() for t in (gradient, before, after)]
    held = sum_over_ranks(entries[0] + entries[1] - entries[2])
    magnitude = sum_over_ranks(entries[0].abs() + entries[1].abs() + entries[2].abs())
    blocks = pad(magnitude, (0, -magnitude.numel() % block)).reshape(-1, block)
    magnitude = blocks.amax(dim=1).repeat_interleave(block)[: magnitude.numel()]
    error = (delivered.double().flatten() - held).abs() / magnitude.clamp(min=1e-300)
    return error.max().item()


def digest(tensor: torch.Tensor) -> str:
    """Return a hash of the bits of a contiguous tensor."""
    return hashlib.sha256(tensor.detach().view(torch.uint8).numpy().tobytes()).hexdigest()
