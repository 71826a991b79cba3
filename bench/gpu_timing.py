"""How operations on a GPU are measured: in turns, on sets of buffers in turn, by CUDA events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fastcomm import _C

# Sets of buffers. Between two uses of one, the others are used, each with 8 bytes per element and
# more: from 10 M elements on several times what a GPU's L2 cache holds.
NUM_SETS = 3
COPY_BYTES = 8
# The host enqueues a round while the GPU does nothing for so long: no gaps between kernels.
_HEAD_START_CYCLES = 4_000_000
_PERIOD = 1_000_003


def gradient_of(num_elements: int, seed: int) -> torch.Tensor:
    """Return normally distributed values on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(num_elements, device="cuda", generator=generator)


@dataclass(frozen=True)
class GpuBuffers:
    """What one rank has for one bucket, on the GPU."""

    gradient: torch.Tensor
    residual: torch.Tensor
    received: torch.Tensor  # a valid payload of another rank
    payload: torch.Tensor
    out: torch.Tensor

    def copy(self) -> None:
        """Run the yardstick: a copy of as many float32, COPY_BYTES per element."""
        self.out.copy_(self.residual)


class GpuPool:
    """All sets of buffers for one number of elements."""

    def __init__(self, num_elements: int) -> None:
        self.num_elements = num_elements
        self._gradients = [gradient_of(num_elements, seed) for seed in range(NUM_SETS)]
        self._residuals = [torch.zeros_like(gradient) for gradient in self._gradients]
        self._outs = [torch.zeros_like(gradient) for gradient in self._gradients]

    @staticmethod
    def bytes_needed(num_elements: int) -> int:
        """Return how much memory the sets and the checks take at the most."""
        return num_elements * (NUM_SETS * (3 * 4 + 2 * 4) + 24) + (1 << 30)

    def for_payloads(self, spec: _C.CodecSpec, sliced: bool) -> list[GpuBuffers]:
        """Return the sets with payloads of a codec in them, and a residual of zero."""
        size = _C.payload_bytes([spec], self.num_elements, sliced)
        workspace = _C.CodecWorkspace()
        sets = []
        for index in range(NUM_SETS):
            received = torch.empty(size, dtype=torch.uint8, device="cuda")
            _C.encode(spec, self._gradients[index - 1], None, [], received, workspace, sliced)
            self._residuals[index].zero_()
            sets.append(
                GpuBuffers(
                    self._gradients[index],
                    self._residuals[index],
                    received,
                    received.clone(),
                    self._outs[index],
                )
            )
        return sets


Operation = Callable[[GpuBuffers], object]


class GpuTurns:
    """Operations that run one after another, over and over, each on the next set of buffers."""

    def __init__(
        self, operations: Mapping[str, Operation], sets: Sequence[GpuBuffers], warmup: int = 3
    ) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in operations}
        self._operations = operations
        self._sets = sets
        self._turn = 0
        self.repeat(warmup)
        for seconds in self.seconds.values():
            seconds.clear()

    def repeat(self, repetitions: int) -> None:
        """Run and time every operation ``repetitions`` times."""
        for _ in range(repetitions):
            torch.cuda.synchronize()
            torch.cuda._sleep(_HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
            events = {
                name: self._enqueue(operation) for name, operation in self._operations.items()
            }
            torch.cuda.synchronize()
            for name, (begin, end) in events.items():
                self.seconds[name].append(begin.elapsed_time(end) / 1e3)

    def _enqueue(self, operation: Operation) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        buffers = self._sets[self._turn % len(self._sets)]
        self._turn += 1
        begin, end = _event(), _event()
        begin.record()
        operation(buffers)
        end.record()
        return begin, end


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def relative_error(delivered: torch.Tensor, left: torch.Tensor, total: torch.Tensor) -> float:
    """Return |delivered + left - total| / |total| (norms), in float64, a part at a time."""
    error = norm = 0.0
    parts = (torch.split(tensor, _PERIOD * 16) for tensor in (delivered, left, total))
    for part, rest, expected in zip(*parts, strict=True):
        difference = part.double().add_(rest).sub_(expected)
        error += float(difference.square().sum())
        norm += float(expected.double().square().sum())
    return float((error / norm) ** 0.5) if norm else float(error > 0)
