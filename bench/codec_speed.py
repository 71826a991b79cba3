"""How fast one codec encodes, hops and decodes, on one instruction set and a number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

import fastcomm
from buffers import ADD_BYTES, STREAM_COPY_BYTES, BufferPool, Buffers
from codec_checks import Candidate, Check, check_decoding, check_encoding, has_oracle
from fastcomm import _C
from measure import TakingTurns, forced_isa, median, spread

OPERATIONS = ("encode", "hop", "decode")


@dataclass(frozen=True)
class CodecRow:
    """One operation of one codec."""

    benchmark: str
    codec: str
    operation: str
    isa: str
    threads: int
    dtype: str
    num_elements: int
    repetitions: int
    wire_bits_per_element: float
    moved_bytes_per_element: float
    seconds_median: float
    spread_ratio: float
    elements_per_second: float
    bytes_per_second: float
    ratio_to_add: float
    ratio_to_stream_copy: float
    kernel_seconds_median: float
    kernel_ratio_to_add: float
    add_bytes_per_second: float
    add_spread_ratio: float
    stream_copy_bytes_per_second: float
    stream_copy_spread_ratio: float
    buffer_sets: str
    correct: bool
    conservation_error: float | None
    oracle: str


def moved_bytes(operation: str, num_elements: int, element_bytes: int, payload_bytes: int) -> int:
    """Return how many bytes an operation must move, from first principles.

    ::

        encode = gradient read + residual read + residual written + payload written
        hop    = encode + received payload read
        decode = payload read + result written

    with 2 or 4 bytes per element of gradient and result, 4 of the residual. A cache line that is
    fetched only to be overwritten (write-allocate) is not counted, nor is a checksum's second look
    at a payload that is in the cache.
    """
    if operation == "decode":
        return payload_bytes + num_elements * element_bytes
    num_payloads = 2 if operation == "hop" else 1
    return num_elements * (element_bytes + 4 + 4) + num_payloads * payload_bytes


def default_codecs() -> list[str]:
    """Return the names of all codecs."""
    dense = [name for name in fastcomm.codecs.codec_names() if not name.startswith("topk")]
    return [*dense, "topk:0.01", "topk:0.001"]


def candidates(names: list[str]) -> Iterator[Candidate]:
    """Return what to measure: the codecs, and after a rotated one its kernels by themselves."""
    rotated = {native.name for native in _C.dense_formats() if native.is_rotated}
    for name in names:
        codec = fastcomm.codec(name)
        if codec.is_stochastic:
            raise SystemExit(f"codec {name} keeps no residual, which this benchmark is about")
        if isinstance(codec, fastcomm.TopK):
            if codec.density > _C.TOPK_LARGEST_SPARSE_DENSITY:
                raise SystemExit(f"codec {name} is sent as int4: measure that")
            yield Candidate(name, codec.spec, 0.0, has_oracle(name), is_sparse=True)
        elif codec.name in rotated:
            yield Candidate(name, codec.spec, 1e-6, has_oracle(name), is_sparse=False)
            plain = _C.CodecSpec(codec.name, rotates=False)
            yield Candidate(f"{name} (unrotated)", plain, 1e-6, has_oracle=False, is_sparse=False)
        else:
            yield Candidate(name, codec.spec, 0.0, has_oracle(name), is_sparse=False)


def measure_codec(
    candidate: Candidate, isa: str, threads: int, pool: BufferPool, repetitions: int
) -> list[CodecRow]:
    """Measure encode, hop and decode, in turns with b += a and a streaming copy."""
    spec, workspace = candidate.spec, _C.CodecWorkspace(_C.ThreadPool(threads))
    torch.set_num_threads(threads)

    def encode(b: Buffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [], b.payload, workspace, sliced=True)

    def hop(b: Buffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [b.received], b.payload, workspace, sliced=True)

    def decode(b: Buffers) -> None:
        _C.decode(spec, b.payload, b.out, workspace, sliced=True)

    def encode_kernel(b: Buffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [], b.unsealed, workspace, True, sealed=False)

    def hop_kernel(b: Buffers) -> None:
        received = [b.received]
        _C.encode(spec, b.gradient, b.residual, received, b.unsealed, workspace, True, sealed=False)

    def decode_kernel(b: Buffers) -> None:
        _C.decode(spec, b.payload, b.out, workspace, sliced=True, sealed=False)

    with forced_isa(isa):
        sets = pool.for_payloads(spec, workspace)
        turns = TakingTurns(
            {
                "add": lambda b: b.add(),
                "stream_copy": lambda b: b.stream_copy(workspace),
                "encode kernel": encode_kernel,
                "hop kernel": hop_kernel,
                "decode kernel": decode_kernel,
                "encode": encode,
                "hop": hop,
                "decode": decode,
            },
            sets,
        )
        turns.repeat(repetitions - 1)
        last = {operation: turns.next_set(operation) for operation in OPERATIONS}
        previous = {name: last[name].residual.clone() for name in ("encode", "hop")}
        turns.repeat(1)
    checks = {
        "encode": check_encoding(candidate, last["encode"], previous["encode"], False),
        "hop": check_encoding(candidate, last["hop"], previous["hop"], True),
        "decode": check_decoding(candidate, last["decode"]),
    }
    return [
        _row(candidate.label, operation, isa, threads, pool, sets[0], turns.seconds, check)
        for operation, check in checks.items()
    ]


def _row(
    label: str,
    operation: str,
    isa: str,
    threads: int,
    pool: BufferPool,
    buffers: Buffers,
    seconds: dict[str, list[float]],
    check: Check,
) -> CodecRow:
    num_elements, payload_bytes = buffers.gradient.numel(), buffers.payload.numel()
    dtype = buffers.gradient.dtype
    moved = moved_bytes(operation, num_elements, dtype.itemsize, payload_bytes)
    add_bytes, copy_bytes = ADD_BYTES * num_elements, STREAM_COPY_BYTES * num_elements
    mine, add, copy = seconds[operation], seconds["add"], seconds["stream_copy"]
    kernel = seconds[f"{operation} kernel"]
    return CodecRow(
        benchmark="codec",
        codec=label,
        operation=operation,
        isa=isa,
        threads=threads,
        dtype=str(dtype).removeprefix("torch."),
        num_elements=num_elements,
        repetitions=len(mine),
        wire_bits_per_element=8 * payload_bytes / num_elements,
        moved_bytes_per_element=moved / num_elements,
        seconds_median=median(mine),
        spread_ratio=spread(mine),
        elements_per_second=num_elements / median(mine),
        bytes_per_second=moved / median(mine),
        ratio_to_add=moved / add_bytes * median(add) / median(mine),
        ratio_to_stream_copy=moved / copy_bytes * median(copy) / median(mine),
        kernel_seconds_median=median(kernel),
        kernel_ratio_to_add=moved / add_bytes * median(add) / median(kernel),
        add_bytes_per_second=add_bytes / median(add),
        add_spread_ratio=spread(add),
        stream_copy_bytes_per_second=copy_bytes / median(copy),
        stream_copy_spread_ratio=spread(copy),
        buffer_sets=pool.description,
        correct=check.correct,
        conservation_error=check.conservation_error,
        oracle=check.oracle,
    )
