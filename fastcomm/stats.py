"""What was sent, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stats:
    """Totals of one rank since its hook state was made.

    Attributes:
        steps: synchronized steps (backward passes that called the hook for every bucket).
        num_elements: gradient elements synchronized.
        raw_bytes: what an uncompressed ring all-reduce would have sent from this rank:
            2 (N-1) / N * num_elements * bytes per element of the gradient's dtype.
        wire_bytes: payload bytes really sent by this rank, headers and scales included.
        seconds_encode: spent accumulating and encoding. With CUDA tensors over gloo this
            has the wait for the gradient in it; over NCCL, all of these only enqueue.
        seconds_decode: spent decoding.
        seconds_send: spent handing payloads to the network.
        seconds_wait: spent waiting for the network. All of these by the lanes, outside the GIL.
            Of a GPU over NCCL: what it took the host to enqueue it.
    """

    steps: int
    num_elements: int
    raw_bytes: int
    wire_bytes: int
    seconds_encode: float
    seconds_decode: float
    seconds_send: float
    seconds_wait: float

    @property
    def ratio(self) -> float:
        """How many times fewer bytes were sent: ``raw_bytes / wire_bytes`` (1.0 if none were)."""
        return self.raw_bytes / self.wire_bytes if self.wire_bytes else 1.0


@dataclass
class Counters:
    """What a hook state counts itself."""

    num_elements: int = 0
    raw_bytes: int = 0

    def add(self, gradients: torch.Tensor, world_size: int) -> None:
        """Count an exchange of ``gradients``."""
        num_bytes = gradients.numel() * gradients.itemsize
        self.num_elements += gradients.numel()
        self.raw_bytes += 2 * (world_size - 1) * num_bytes // world_size

    def stats(self, steps: int, measured: dict[str, float]) -> Stats:
        """Return the totals, with what the native layer measured."""
        return Stats(
            steps=steps,
            num_elements=self.num_elements,
            raw_bytes=self.raw_bytes,
            wire_bytes=int(measured.get("wire_bytes", 0)),
            seconds_encode=measured.get("seconds_encode", 0.0),
            seconds_decode=measured.get("seconds_decode", 0.0),
            seconds_send=measured.get("seconds_send", 0.0),
            seconds_wait=measured.get("seconds_wait", 0.0),
        )
