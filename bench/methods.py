"""Ways to synchronize a gradient bucket: fastcomm's codecs, and what PyTorch brings.

PyTorch's hooks are called as DDP calls them, with a stand-in for its GradBucket: so all methods
work on the same memory, and nothing but the synchronization is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook,
    quantization_hooks,
)

import fastcomm

# Averages (or sums: see SUMS) the tensor over all ranks, in place.
Synchronize = Callable[[torch.Tensor], None]

# gloo has no average; the division that DDP makes first is left out, in gloo's favour.
SUMS = ("gloo",)

PEERS: dict[str, str] = {
    "gloo": "dist.all_reduce of float32",
    "fp16": "default_hooks.fp16_compress_hook",
    "bf16": "default_hooks.bf16_compress_hook",
    "powersgd2": "powerSGD_hook, rank 2",
    "powersgd4": "powerSGD_hook, rank 4",
    "quantize_tensor": "quantization_pertensor_hook, 8 bits",
    "quantize_channel": "quantization_perchannel_hook, 8 bits",
}
# What a name on the command line stands for, where it is not one peer.
PEER_GROUPS = {
    "powersgd": ["powersgd2", "powersgd4"],
    "quantization": ["quantize_tensor", "quantize_channel"],
}
# On gloo some of these end the process, so that each gets processes of its own.
FRAGILE = ("powersgd2", "powersgd4", "quantize_tensor", "quantize_channel")


class StandInBucket:
    """What PyTorch's hooks use of a GradBucket: one two-dimensional gradient."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer = buffer
        # As square as it can be: what low-rank compression is made for.
        rows = 1 << (buffer.numel().bit_length() // 2)
        while buffer.numel() % rows:
            rows //= 2
        self._gradient = buffer.view(rows, -1)

    def buffer(self) -> torch.Tensor:
        """Return the flat gradients."""
        return self._buffer

    def gradients(self) -> list[torch.Tensor]:
        """Return views of the buffer, one for each parameter."""
        return [self._gradient]

    def index(self) -> int:
        """Return the number of the bucket in its step."""
        return 0

    def is_last(self) -> bool:
        """Return whether this is the last bucket of its step."""
        return True


def _from_hook(hook: Callable[..., Any], state: object) -> Synchronize:
    def synchronize(tensor: torch.Tensor) -> None:
        result = hook(state, StandInBucket(tensor)).wait()
        result = result[0] if isinstance(result, (list, tuple)) else result
        if result.data_ptr() != tensor.data_ptr():
            tensor.copy_(result)  # as DDP does

    return synchronize


def make_peer(name: str) -> Synchronize:
    """Return the peer of this name. Collective for some peers."""
    if name == "gloo":
        return lambda tensor: dist.all_reduce(tensor) and None
    if name.startswith("powersgd"):
        state = powerSGD_hook.PowerSGDState(
            None,
            matrix_approximation_rank=int(name.removeprefix("powersgd")),
            start_powerSGD_iter=2,
            min_compression_rate=1,
        )
        return _from_hook(powerSGD_hook.powerSGD_hook, state)
    hook = {
        "fp16": default_hooks.fp16_compress_hook,
        "bf16": default_hooks.bf16_compress_hook,
        "quantize_tensor": quantization_hooks.quantization_pertensor_hook,
        "quantize_channel": quantization_hooks.quantization_perchannel_hook,
    }[name]
    return _from_hook(hook, dist.group.WORLD)


def peer_wire_bytes(name: str, num_elements: int, world_size: int) -> int | None:
    """Return the bytes a rank has to send, None if that depends on more than the size.

    PyTorch reduces with a ring: 2 (N-1) / N of the tensor, in the type that the hook converts to.
    """
    bytes_per_element = {"gloo": 4, "fp16": 2, "bf16": 2}.get(name)
    if bytes_per_element is None:
        return None
    return 2 * (world_size - 1) * num_elements * bytes_per_element // world_size


class Compressed:
    """fastcomm's all-reduce with error feedback; each call starts with a residual of zeros."""

    def __init__(self, codec: str, algorithm: str, residual: torch.Tensor) -> None:
        self._codec = fastcomm.codec(codec)
        self._algorithm = algorithm
        self._residual = residual if self._codec.loses_bits else None

    def residual(self, num_elements: int) -> torch.Tensor | None:
        """Return this rank's residual of the last call; None if the codec loses nothing."""
        return None if self._residual is None else self._residual[:num_elements]

    def clear(self) -> None:
        """Forget what the last call left out."""
        if self._residual is not None:
            self._residual.zero_()

    def __call__(self, tensor: torch.Tensor) -> None:
        """Average ``tensor`` over all ranks."""
        fastcomm.all_reduce(
            tensor,
            op=dist.ReduceOp.AVG,
            codec=self._codec,
            algorithm=self._algorithm,
            residual=self.residual(tensor.numel()),
        )
