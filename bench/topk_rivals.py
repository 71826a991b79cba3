"""fastcomm's top-k against torch.topk and numpy.argpartition, on four kinds of gradients.

The rivals find the k largest of |gradient|, and no more. fastcomm selects among gradient +
residual, updates the residual and writes the payload with its checksum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

import fastcomm
from buffers import ADD_BYTES, STREAM_COPY_BYTES, BufferPool, Buffers
from codec_checks import Candidate, check_encoding, num_entries
from codec_speed import moved_bytes
from fastcomm import _C
from measure import TakingTurns, forced_isa, median, spread

F32 = npt.NDArray[np.float32]
_MOST_RIVAL_REPETITIONS = 3  # they take a second per repetition
_ENERGY_TOLERANCE = 1e-9


def gaussian(random: np.random.Generator, size: int) -> F32:
    """Return normally distributed values."""
    return random.standard_normal(size, np.float32)


def student_t(random: np.random.Generator, size: int) -> F32:
    """Return values with heavy tails: Student's t with 2 degrees of freedom."""
    return random.standard_t(2, size).astype(np.float32)


def mostly_zeros(random: np.random.Generator, size: int) -> F32:
    """Return values of which 95 % are zero."""
    values = gaussian(random, size)
    values[random.random(size, np.float32) < 0.95] = 0
    return values


def layers(random: np.random.Generator, size: int) -> F32:
    """Return 50 runs of Gaussians; their sizes and scales span four decades each."""
    sizes = 10.0 ** random.uniform(-4, 0, 50)
    ends = np.rint(np.cumsum(sizes) / sizes.sum() * size).astype(np.int64)
    scales = (10.0 ** random.uniform(-4, 0, 50)).astype(np.float32)
    return gaussian(random, size) * np.repeat(scales, np.diff(ends, prepend=0))


INPUTS: dict[str, Callable[[np.random.Generator, int], F32]] = {
    "Gaussian": gaussian,
    "Student t, 2 dof": student_t,
    "95 % zeros": mostly_zeros,
    "50 mixed layers": layers,
}


@dataclass(frozen=True)
class TopKRow:
    """Selections of the k largest of one kind of gradient."""

    benchmark: str
    codec: str
    gradient: str
    isa: str
    threads: int
    num_elements: int
    k: int
    repetitions: int
    rival_repetitions: int
    seconds_median: float
    spread_ratio: float
    seconds_torch_topk: float
    seconds_numpy_argpartition: float
    speedup_over_torch_topk: float
    ratio_to_add: float
    ratio_to_stream_copy: float
    entries: int
    is_exact_k: bool
    energy_ratio: float
    buffer_sets: str
    correct: bool
    conservation_error: float | None


def measure_topk(
    codec: fastcomm.TopK,
    kind: str,
    isa: str,
    threads: int,
    pool: BufferPool,
    repetitions: int,
) -> TopKRow:
    """Measure one density on the gradients of ``kind`` that ``pool`` holds."""
    spec, workspace = codec.spec, _C.CodecWorkspace(_C.ThreadPool(threads))
    num_elements = pool.sets[0].gradient.numel()
    k = max(1, math.floor(codec.density * num_elements + 0.5))
    torch.set_num_threads(threads)

    def encode(b: Buffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [], b.payload, workspace, sliced=True)

    def torch_topk(b: Buffers) -> None:
        torch.topk(b.gradient.abs(), k, sorted=False)

    def numpy_argpartition(b: Buffers) -> None:
        np.argpartition(np.abs(b.gradient.numpy()), num_elements - k)[num_elements - k :]

    rival_repetitions = min(_MOST_RIVAL_REPETITIONS, repetitions)
    with forced_isa(isa):
        sets = pool.for_payloads(spec, workspace)
        rivals = TakingTurns({"torch": torch_topk, "numpy": numpy_argpartition}, sets)
        turns = TakingTurns(
            {
                "add": lambda b: b.add(),
                "stream_copy": lambda b: b.stream_copy(workspace),
                "encode": encode,
            },
            sets,
        )
        for _ in range(rival_repetitions):
            rivals.repeat(1)
            turns.repeat(repetitions // rival_repetitions)
        last = turns.next_set("encode")
        previous = last.residual.clone()
        turns.repeat(1)
    candidate = Candidate(str(codec), spec, 0.0, has_oracle=False, is_sparse=True)
    check = check_encoding(candidate, last, previous, has_received=False)
    value = last.gradient + previous
    entries, energy_ratio = num_entries(last.payload, num_elements), _energy(spec, last, value, k)
    is_exact_k = entries == min(k, int(value.count_nonzero()))
    moved = moved_bytes("encode", num_elements, 4, last.payload.numel())
    add_bytes, copy_bytes = ADD_BYTES * num_elements, STREAM_COPY_BYTES * num_elements
    mine, add, copy = (turns.seconds[name] for name in ("encode", "add", "stream_copy"))
    return TopKRow(
        benchmark="topk",
        codec=str(codec),
        gradient=kind,
        isa=isa,
        threads=threads,
        num_elements=num_elements,
        k=k,
        repetitions=len(mine),
        rival_repetitions=rival_repetitions,
        seconds_median=median(mine),
        spread_ratio=spread(mine),
        seconds_torch_topk=median(rivals.seconds["torch"]),
        seconds_numpy_argpartition=median(rivals.seconds["numpy"]),
        speedup_over_torch_topk=median(rivals.seconds["torch"]) / median(mine),
        ratio_to_add=moved / add_bytes * median(add) / median(mine),
        ratio_to_stream_copy=moved / copy_bytes * median(copy) / median(mine),
        entries=entries,
        is_exact_k=is_exact_k,
        energy_ratio=energy_ratio,
        buffer_sets=pool.description,
        correct=check.correct and is_exact_k and abs(energy_ratio - 1) <= _ENERGY_TOLERANCE,
        conservation_error=check.conservation_error,
    )


def _energy(spec: _C.CodecSpec, buffers: Buffers, value: torch.Tensor, k: int) -> float:
    """Return the sum of squares of the elements that were sent, over that of the k largest."""
    delivered = torch.empty_like(value)
    _C.decode(spec, buffers.payload, delivered, _C.CodecWorkspace(), sliced=True)
    sent = value[delivered != 0].double().square().sum()
    largest = torch.topk(value.abs(), k, sorted=False).values.double().square().sum()
    return (sent / largest).item()
