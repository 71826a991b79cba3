"""How fast the codecs are on a GPU, against a copy in its memory: a program of bench/gpu.py.

    python bench/gpu_kernels.py rows.jsonl

Writes a row of JSON a line, as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from demo_extra import demo_imports

with demo_imports():
    import torch

    import fastcomm
    from codec_checks import Candidate
    from codec_speed import candidates, moved_bytes
    from fastcomm import _C
    from gpu_rivals import measure_int8, measure_topk
    from gpu_timing import COPY_BYTES, GpuBuffers, GpuPool, GpuTurns, Operation, relative_error
    from measure import median, spread

SIZES = [25_000_000, 250_000_000]
REPETITIONS = {25_000_000: 40, 250_000_000: 15}
TOPK = ["topk:0.01", "topk:0.001"]
_SIZE_ON_CPU = 1_000_003
_OPERATIONS = ("encode", "hop", "decode")


@dataclass(frozen=True)
class Variant:
    """What of a codec is measured."""

    name: str
    sliced: bool  # as the ring cuts a bucket
    sealed: bool  # with header and checksum


KERNEL = Variant("kernel", sliced=False, sealed=False)
SEALED = Variant("sealed", sliced=False, sealed=True)
SLICES = Variant("slices", sliced=True, sealed=False)


@dataclass(frozen=True)
class GpuCodecRow:
    """One operation of one codec; bench/README.md counts the bytes."""

    benchmark: str
    codec: str
    variant: str
    operation: str
    num_elements: int
    repetitions: int
    wire_bits_per_element: float
    moved_bytes: int
    moved_bytes_per_element: float
    seconds_median: float
    spread_ratio: float
    bytes_per_second: float
    copy_bytes_per_second: float
    copy_spread_ratio: float
    ratio_to_copy: float
    conservation_error: float | None
    same_as_cpu: bool
    correct: bool


def variants_of(candidate: Candidate) -> list[Variant]:
    """Return what to measure of a codec."""
    extra = {"int8": [SEALED, SLICES], "int4": [SEALED]}
    return [KERNEL, *extra.get(candidate.label, [])]


def operations_of(candidate: Candidate, variant: Variant) -> dict[str, Operation]:
    """Return encode, hop and decode."""
    spec, workspace, options = candidate.spec, _C.CodecWorkspace(), (variant.sliced, variant.sealed)

    def encode(b: GpuBuffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [], b.payload, workspace, *options)

    def hop(b: GpuBuffers) -> None:
        _C.encode(spec, b.gradient, b.residual, [b.received], b.payload, workspace, *options)

    def decode(b: GpuBuffers) -> None:
        _C.decode(spec, b.received, b.out, workspace, *options)

    operations: dict[str, Operation] = {"encode": encode, "hop": hop, "decode": decode}
    if variant.sealed:
        del operations["decode"]  # waits for the host, to say what is wrong with a payload
    return operations


def conservation_errors(candidate: Candidate, b: GpuBuffers, sliced: bool) -> dict[str, float]:
    """Return how far what arrives and what is left are from what went in, at full size."""
    spec, workspace, errors = candidate.spec, _C.CodecWorkspace(), {}
    for operation, received in (("encode", []), ("hop", [b.received])):
        total = b.residual.clone()
        if received:
            _C.decode(spec, b.received, b.out, workspace, sliced)
        # Sums of f32 depend on their order. Top-k adds what it receives to the residual.
        if candidate.is_sparse:
            total = total.add_(b.out).add_(b.gradient) if received else total.add_(b.gradient)
        else:
            total = total.add_(b.gradient).add_(b.out) if received else total.add_(b.gradient)
        _C.encode(spec, b.gradient, b.residual, received, b.payload, workspace, sliced)
        b.out.fill_(float("nan"))
        _C.decode(spec, b.payload, b.out, workspace, sliced)
        errors[operation] = relative_error(b.out, b.residual, total)
    return errors


def same_as_cpu(spec: _C.CodecSpec, variant: Variant) -> dict[str, bool]:
    """Return, by operation, whether the CPU has the same bits, at a smaller size."""
    sliced, found = variant.sliced, {}
    generator = torch.Generator().manual_seed(7)
    gradient, residual, theirs = torch.randn(3, _SIZE_ON_CPU, generator=generator).unbind()
    size = _C.payload_bytes([spec], _SIZE_ON_CPU, sliced)
    other = torch.zeros(size, dtype=torch.uint8)
    _C.encode(spec, theirs.contiguous(), None, [], other, _C.CodecWorkspace(), sliced)
    for operation, received in (("encode", []), ("hop", [other])):
        outputs = []
        for device in ("cuda", "cpu"):
            held = residual.to(device, copy=True)
            payload = torch.zeros(size, dtype=torch.uint8, device=device)
            _C.encode(
                spec,
                gradient.to(device, copy=True),
                held,
                [payload_there.to(device) for payload_there in received],
                payload,
                _C.CodecWorkspace(),
                sliced,
                variant.sealed,
            )
            outputs.append((payload.cpu(), held.cpu()))
        found[operation] = all(torch.equal(mine, cpus) for mine, cpus in zip(*outputs, strict=True))
    results = [torch.zeros(_SIZE_ON_CPU, device=device) for device in ("cuda", "cpu")]
    for out in results:
        _C.decode(spec, other.to(out.device), out, _C.CodecWorkspace(), sliced)
    found["decode"] = torch.equal(results[0].cpu(), results[1])
    return found


def measure_codec(
    candidate: Candidate, variant: Variant, pool: GpuPool, repetitions: int
) -> Iterator[GpuCodecRow]:
    """Measure encode, hop and decode, in turns with a copy."""
    sets = pool.for_payloads(candidate.spec, variant.sliced)
    turns = GpuTurns({"copy": GpuBuffers.copy, **operations_of(candidate, variant)}, sets)
    turns.repeat(repetitions)
    errors = conservation_errors(candidate, sets[0], variant.sliced)
    same = same_as_cpu(candidate.spec, variant)
    copy = turns.seconds["copy"]
    copy_rate = COPY_BYTES * pool.num_elements / median(copy)
    payload_bytes = sets[0].payload.numel()
    for operation in _OPERATIONS:
        seconds = turns.seconds[operation]
        moved = moved_bytes(operation, pool.num_elements, 4, payload_bytes)
        error = errors.get(operation)
        yield GpuCodecRow(
            benchmark="gpu_codec",
            codec=candidate.label,
            variant=variant.name,
            operation=operation,
            num_elements=pool.num_elements,
            repetitions=len(seconds),
            wire_bits_per_element=8 * payload_bytes / pool.num_elements,
            moved_bytes=moved,
            moved_bytes_per_element=moved / pool.num_elements,
            seconds_median=median(seconds),
            spread_ratio=spread(seconds),
            bytes_per_second=moved / median(seconds),
            copy_bytes_per_second=copy_rate,
            copy_spread_ratio=spread(copy),
            ratio_to_copy=moved / median(seconds) / copy_rate,
            conservation_error=error,
            same_as_cpu=same[operation],
            correct=same[operation] and (error or 0) <= candidate.conservation_tolerance,
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=Path, help="where to write the rows")
    return parser.parse_args()


def main() -> None:
    """Measure everything, the smaller size first."""
    rows_file: Path = parse_arguments().rows
    dense = [name for name in fastcomm.codecs.codec_names() if not name.startswith("topk")]
    # What matters most first: the time may run out.
    order = {name: index for index, name in enumerate(["int8", "int4", "sign", "int2"])}
    dense.sort(key=lambda name: order.get(name, len(order)))
    with rows_file.open("w") as file:

        def write(row: object) -> None:
            print(json.dumps(asdict(row)), file=file, flush=True)  # type: ignore[call-overload]

        for num_elements in SIZES:
            free_bytes = torch.cuda.mem_get_info()[0]
            if GpuPool.bytes_needed(num_elements) > free_bytes:
                print(f"{num_elements} elements do not fit into {free_bytes / 2**30:.0f} GiB")
                continue
            pool, repetitions = GpuPool(num_elements), REPETITIONS[num_elements]
            measured = list(candidates(dense))
            for candidate in measured:
                for variant in variants_of(candidate):
                    for row in measure_codec(candidate, variant, pool, repetitions):
                        write(row)
            for name in TOPK:
                write(measure_topk(fastcomm.codec(name), pool, repetitions))
            for int8_row in measure_int8(pool, repetitions):
                write(int8_row)
            del pool
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
