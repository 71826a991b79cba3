"""What was sent, and where the time went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, repr=False)
class Stats:
    """Totals of one rank since its hook state was made, and the bytes of its last step.

    Attributes:
        steps: synchronized steps (backward passes that called the hook for every bucket).
        num_elements: gradient elements synchronized.
        raw_bytes: what an uncompressed ring all-reduce would have sent from this rank:
            2 (N-1) / N * num_elements * bytes per element of the gradient's dtype.
        wire_bytes: payload bytes really sent by this rank, headers and scales included.
        last_step_raw_bytes: ``raw_bytes`` of the last step that began.
        last_step_wire_bytes: ``wire_bytes`` of that step.
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
    last_step_raw_bytes: int
    last_step_wire_bytes: int
    seconds_encode: float
    seconds_decode: float
    seconds_send: float
    seconds_wait: float

    def __repr__(self) -> str:
        return (
            f"Stats({self.steps} steps: {described_bytes(self.wire_bytes)} sent instead of "
            f"{described_bytes(self.raw_bytes)}, ratio {self.ratio:.4g}; last step: "
            f"{described_bytes(self.last_step_wire_bytes)} instead of "
            f"{described_bytes(self.last_step_raw_bytes)}, ratio {self.last_step_ratio:.4g}; "
            f"encode {self.seconds_encode:.3g} s, decode {self.seconds_decode:.3g} s, "
            f"send {self.seconds_send:.3g} s, wait {self.seconds_wait:.3g} s)"
        )

    @property
    def ratio(self) -> float:
        """How many times fewer bytes were sent: ``raw_bytes / wire_bytes`` (1.0 if none were).

        Over all steps: a warm-up, which sends more, is in it for good.
        """
        return self.raw_bytes / self.wire_bytes if self.wire_bytes else 1.0

    @property
    def last_step_ratio(self) -> float:
        """How many times fewer bytes the last step sent (1.0 if it sent none)."""
        if not self.last_step_wire_bytes:
            return 1.0
        return self.last_step_raw_bytes / self.last_step_wire_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return everything by name, the two ratios included, for a logger of metrics."""
        return {**asdict(self), "ratio": self.ratio, "last_step_ratio": self.last_step_ratio}


@dataclass
class Counters:
    """What a hook state counts itself."""

    num_elements: int = 0
    raw_bytes: int = 0
    raw_bytes_before: int = 0  # before the last step that began
    wire_bytes_before: int = 0

    def begin_step(self, measured: dict[str, float]) -> None:
        """Note what was sent up to here, as the native layer measured it."""
        self.raw_bytes_before = self.raw_bytes
        self.wire_bytes_before = int(measured.get("wire_bytes", 0))

    def add(self, gradients: torch.Tensor, world_size: int) -> None:
        """Count an exchange of ``gradients``."""
        num_bytes = gradients.numel() * gradients.itemsize
        self.num_elements += gradients.numel()
        self.raw_bytes += 2 * (world_size - 1) * num_bytes // world_size

    def stats(self, steps: int, measured: dict[str, float]) -> Stats:
        """Return the totals, with what the native layer measured."""
        wire_bytes = int(measured.get("wire_bytes", 0))
        return Stats(
            steps=steps,
            num_elements=self.num_elements,
            raw_bytes=self.raw_bytes,
            wire_bytes=wire_bytes,
            last_step_raw_bytes=self.raw_bytes - self.raw_bytes_before,
            last_step_wire_bytes=wire_bytes - self.wire_bytes_before,
            seconds_encode=measured.get("seconds_encode", 0.0),
            seconds_decode=measured.get("seconds_decode", 0.0),
            seconds_send=measured.get("seconds_send", 0.0),
            seconds_wait=measured.get("seconds_wait", 0.0),
        )


def described_bytes(num_bytes: int) -> str:
    """Return a number of bytes with three digits and a decimal unit, such as ``1.23 MB``."""
    number, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"
