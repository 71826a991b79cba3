"""The all-reduce algorithms by name, and which of them a bucket takes."""

from __future__ import annotations

from fastcomm import _C
from fastcomm.codecs import Codec
from fastcomm.errors import ArgumentError

# The largest payload of a bucket for which latency counts more than what scatter_gather loses to
# the ring in overlap. Measured with 4 and 8 ranks at 1 Gbit/s.
_LARGEST_SCATTERED_BYTES = 1 << 19


def check_algorithm(algorithm: str) -> None:
    """Raise :class:`ArgumentError` for an unknown algorithm."""
    known = ["auto", *_C.algorithm_names()]
    if algorithm not in known:
        raise ArgumentError(f"unknown algorithm {algorithm!r}; known: {', '.join(known)}")


def codecs_and_runs(
    codec: Codec, runs: list[tuple[int, bool]]
) -> tuple[list[_C.CodecSpec], list[tuple[int, int]]]:
    """Return runs of (num_elements, compressed) as the native layer wants them."""
    specs = [codec.spec, _C.CodecSpec("fp32")]
    return specs, [(num, 0 if is_compressed else 1) for num, is_compressed in runs]


def choose_algorithm(
    algorithm: str,
    codec: Codec,
    world_size: int,
    runs: list[tuple[int, bool]],
    has_openings: bool = True,
) -> str:
    """Resolve ``auto``: what takes the least time, by the size of a rank's payload.

    The smallest buckets are gathered: their payloads travel with the first message of an exchange,
    to all ranks, which hardly costs time and is one message's latency. Others of more than two
    ranks take two with scatter_gather, where ring would take 2 (N-1). Large buckets take the ring:
    as many bytes, only between neighbours, and slices that overlap best.

    Of sparse payloads gather gives the exact union of what the ranks selected, after one encoding:
    it is used while it costs no more bytes (2 ranks) or hardly any (density below 0.5 %).

    Args:
        algorithm: ``auto``, or what to return.
        codec: the codec of the bucket.
        world_size: number of ranks.
        runs: (num_elements, compressed) for each part of the bucket.
        has_openings: whether exchanges begin with a message that can carry a small payload: not
            over NCCL.
    """
    if algorithm != "auto":
        return algorithm
    num_elements = sum(num for num, _ in runs)
    specs, native_runs = codecs_and_runs(codec, runs)
    payload_bytes = _C.payload_bytes(specs, num_elements, runs=native_runs)
    if has_openings and payload_bytes <= _C.largest_opening_payload(world_size):
        return "gather"
    density = getattr(codec, "density", 1.0)
    is_sparse = density <= _C.TOPK_LARGEST_SPARSE_DENSITY
    if is_sparse and (world_size <= 2 or density < 0.005):
        return "gather"
    if world_size > 2 and payload_bytes <= _LARGEST_SCATTERED_BYTES:
        return "scatter_gather"
    return "ring"
