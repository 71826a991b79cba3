"""A bucket as runs of elements, each with its codec, and what the native layer is told of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from fastcomm import _C
from fastcomm.codecs import Codec

# (num_elements, codec) of contiguous parts that cover a bucket.
Runs: TypeAlias = list[tuple[int, Codec]]


def merged_runs(runs: Iterable[tuple[int, Codec]]) -> Runs:
    """Join neighbours with the same codec."""
    merged: Runs = []
    for num_elements, codec in runs:
        if merged and merged[-1][1] == codec:
            merged[-1] = (merged[-1][0] + num_elements, codec)
        else:
            merged.append((num_elements, codec))
    return merged


def native_runs(runs: Runs) -> tuple[list[_C.CodecSpec], list[tuple[int, int]]]:
    """Return the codecs of ``runs``, each once, and (num_elements, index of its codec)."""
    codecs = list(dict.fromkeys(codec for _, codec in runs))
    index = {codec: place for place, codec in enumerate(codecs)}
    return [codec.spec for codec in codecs], [(number, index[codec]) for number, codec in runs]


def bucket_plan(runs: Runs, algorithm: str, threads: _C.ThreadPool | None) -> _C.BucketPlan:
    """Return the plan of a bucket."""
    return _C.BucketPlan(*native_runs(runs), algorithm, threads)


def payload_bytes(runs: Runs) -> int:
    """Return the size in bytes of a payload of a whole bucket, header included."""
    codecs, its_runs = native_runs(runs)
    return _C.payload_bytes(codecs, sum(number for number, _ in runs), runs=its_runs)
