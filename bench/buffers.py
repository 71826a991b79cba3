"""Sets of buffers that a benchmark uses in turn: it then reads memory, not the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fastcomm import _C
from measure import l3_bytes, memory_bytes

_ASSUMED_L3_BYTES = 64 << 20  # where the system does not say
# The last operations of a repetition work on sets of their own, and can be checked afterwards.
_FEWEST_SETS = 3


@dataclass(frozen=True)
class Buffers:
    """What one rank has for one bucket. All of it has been written to: no page faults later."""

    gradient: torch.Tensor
    residual: torch.Tensor
    received: torch.Tensor  # a payload of another rank
    payload: torch.Tensor
    unsealed: torch.Tensor  # a payload without header and checksum
    float32_out: torch.Tensor

    @property
    def out(self) -> torch.Tensor:
        """Where decoded elements go, of the gradient's dtype."""
        return self.float32_out.view(self.gradient.dtype)[: self.gradient.numel()]

    def add(self) -> torch.Tensor:
        """Run the first yardstick, b += a: 12 bytes per element."""
        return self.float32_out.add_(self.residual)

    def stream_copy(self, workspace: _C.CodecWorkspace) -> None:
        """Run the second yardstick, a copy with non-temporal stores: 8 bytes per element."""
        _C.stream_copy(self.float32_out, self.residual, workspace)


ADD_BYTES = 12
STREAM_COPY_BYTES = 8


@dataclass(frozen=True)
class BufferPool:
    """All sets, and in words how they were chosen."""

    sets: list[Buffers]
    description: str

    @classmethod
    def allocate(cls, num_elements: int, dtype: torch.dtype, payload_bytes: int) -> BufferPool:
        """Allocate sets for payloads of up to ``payload_bytes``.

        Between two uses of a set the others are used, with 8 bytes per element and more each: as
        many as to move twice the L3 cache through it, but at most a third of the machine's memory.
        """
        cache = l3_bytes()
        set_bytes = num_elements * (8 + dtype.itemsize) + 3 * payload_bytes
        bytes_per_use = STREAM_COPY_BYTES * num_elements
        wanted = 1 + math.ceil(2 * (cache or _ASSUMED_L3_BYTES) / bytes_per_use)
        affordable = memory_bytes() // 3 // set_bytes
        if affordable < _FEWEST_SETS:
            raise SystemExit(
                f"{num_elements} elements need {_FEWEST_SETS} x {set_bytes / 1e9:.1f} GB, more "
                "than a third of this machine's memory; use a smaller --num-elements"
            )
        num_sets = min(max(wanted, _FEWEST_SETS), affordable)
        description = (
            f"{num_sets} sets of buffers in turn, {num_sets * set_bytes / 1e9:.2f} GB; "
            + (f"L3 {cache / 2**20:.0f} MiB" if cache else "L3 of unknown size, 64 MiB assumed")
            + (", fewer sets than wanted for lack of memory" if affordable < wanted else "")
        )
        sets = [
            Buffers(
                torch.ones(num_elements, dtype=dtype),
                torch.ones(num_elements),
                torch.ones(payload_bytes, dtype=torch.uint8),
                torch.ones(payload_bytes, dtype=torch.uint8),
                torch.ones(payload_bytes, dtype=torch.uint8),
                torch.ones(num_elements),
            )
            for _ in range(num_sets)
        ]
        return cls(sets, description)

    def fill_gradients(self, values: torch.Tensor) -> None:
        """Give each set ``values`` in another order, with a residual of zero."""
        for index, buffers in enumerate(self.sets):
            shift = index * values.numel() // len(self.sets)
            buffers.gradient.copy_(values.roll(shift))
            buffers.residual.zero_()

    def for_payloads(self, spec: _C.CodecSpec, workspace: _C.CodecWorkspace) -> list[Buffers]:
        """Return the sets with payloads of a codec in them, and a residual of zero."""
        num_elements = self.sets[0].gradient.numel()
        size = _C.payload_bytes([spec], num_elements, sliced=True)
        sets = [
            replace(
                s, received=s.received[:size], payload=s.payload[:size], unsealed=s.unsealed[:size]
            )
            for s in self.sets
        ]
        for index, buffers in enumerate(sets):
            gradient = sets[index - 1].gradient
            buffers.residual.zero_()
            _C.encode(spec, gradient, None, [], buffers.received, workspace, sliced=True)
            buffers.payload.copy_(buffers.received)
        return sets
