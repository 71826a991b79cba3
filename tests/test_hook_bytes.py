"""What the hook says it sent is exactly what its codec and schedule must send."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from fastcomm import _C
from fastcomm.algorithms import choose_algorithm
from fastcomm.codecs import Codec
from training import backward, mlp, register_recorded


def payload_bytes(codec: Codec, runs: list[tuple[int, bool]], begin: int, end: int) -> int:
    """Return the size of the payload of elements begin:end of a bucket (docs/wire_format.md)."""
    header = codec.wire_bytes(0)
    plain, total, num_sparse, first = fastcomm.Fp32(), header, 0, 0
    for num_elements, compressed in runs:
        count = min(end, first + num_elements) - max(begin, first)
        first += num_elements
        if count <= 0:
            continue
        if compressed and isinstance(codec, fastcomm.TopK):
            num_sparse += count  # one section for all of them
        else:
            total += (codec if compressed else plain).wire_bytes(count) - header
    return total + codec.wire_bytes(num_sparse) - header


def sent_bytes(
    codec: Codec, algorithm: str, runs: list[tuple[int, bool]], num_ranks: int, rank: int
) -> int:
    """Return what a rank sends for a bucket, in slices."""
    num_elements = sum(n for n, _ in runs)
    if algorithm == "gather":
        return (num_ranks - 1) * payload_bytes_of_slices(codec, runs, 0, num_elements, num_elements)
    block = codec.block_size if isinstance(codec, fastcomm.DenseCodec) else 512
    assert block is not None
    length = math.ceil(math.ceil(num_elements / num_ranks) / block) * block
    if algorithm == "ring":
        segments = [(rank - hop) % num_ranks for hop in range(2 * (num_ranks - 1))]
    else:  # its part of each other segment, and its own one to all others
        others = [segment for segment in range(num_ranks) if segment != rank]
        segments = others + [rank] * len(others)
    total = 0
    for segment in segments:
        begin = min(num_elements, segment * length)
        end = min(num_elements, begin + length)
        total += payload_bytes_of_slices(codec, runs, begin, end, length)
    return total


def payload_bytes_of_slices(
    codec: Codec, runs: list[tuple[int, bool]], begin: int, end: int, segment_length: int
) -> int:
    """Return the size of the payloads of elements begin:end, whose segment is cut in slices."""
    if not isinstance(codec, fastcomm.DenseCodec):
        length = 2**23
    else:
        (bits,) = [f.code_bits for f in _C.dense_formats() if f.name == codec.name]
        block = codec.block_size
        assert block is not None
        aligned = [math.ceil(n / block) * block for n in (2**17 * 8 / bits, 2**22 * 8 / bits)]
        length = math.ceil(segment_length // 6 / block) * block
        length = min(max(length, aligned[0]), aligned[1])
    return sum(
        payload_bytes(codec, runs, first, min(end, first + length))
        for first in range(begin, end, length)
    )


def stats_and_expectation(codec_name: str, algorithm: str) -> None:
    num_ranks, rank = dist.get_world_size(), dist.get_rank()
    codec = fastcomm.codec(codec_name)
    model = DistributedDataParallel(mlp(width=3001), bucket_cap_mb=1)
    recorder = register_recorded(model, codec_name, algorithm=algorithm)
    for step in range(3):
        backward(model, step)
    stats = recorder.state.stats
    assert stats.steps == 3
    num_elements = sum(p.numel() for p in model.parameters())
    assert stats.num_elements == 3 * num_elements
    buckets = [bucket for step in recorder.steps for bucket in step]
    assert len(buckets) > 3, "this test wants several buckets"
    sizes = [sum(p.numel() for p in bucket) for bucket in buckets]
    assert stats.raw_bytes == sum(2 * (num_ranks - 1) * n * 4 // num_ranks for n in sizes)
    expected = 0
    for bucket in buckets:
        is_fp32 = not codec.loses_bits  # what is not compressed is, too
        runs = [(p.numel(), is_fp32 or (p.dim() > 1 and p.numel() >= 1024)) for p in bucket]
        # Neighbours of a kind share a section.
        merged: list[tuple[int, bool]] = []
        for n, compressed in runs:
            if merged and merged[-1][1] == compressed:
                merged[-1] = (merged[-1][0] + n, compressed)
            else:
                merged.append((n, compressed))
        its_codecs = {True: codec, False: fastcomm.Fp32()}
        chosen = choose_algorithm(algorithm, [(n, its_codecs[c]) for n, c in merged], num_ranks)
        whole = payload_bytes(codec, merged, 0, sum(n for n, _ in merged))
        if chosen == "gather" and whole <= _C.largest_opening_payload(num_ranks):
            expected += (num_ranks - 1) * (_C.OPENING_RECORD_BYTES + whole)
        else:  # neighbours say what they are about to send: one of two ranks, two of more
            expected += min(2, num_ranks - 1) * _C.OPENING_RECORD_BYTES
            expected += sent_bytes(codec, chosen, merged, num_ranks, rank)
    assert stats.wire_bytes == expected
    assert stats.ratio == stats.raw_bytes / stats.wire_bytes


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize(
    ("codec", "algorithm"),
    [
        ("fp32", "auto"),
        ("int8", "auto"),
        ("int4", "gather"),
        ("sign", "scatter_gather"),
        ("topk:0.01", "auto"),
        ("topk:0.01", "scatter_gather"),
    ],
)
def test_stats_count_every_byte_sent(codec: str, algorithm: str, num_ranks: int) -> None:
    ranks.run(num_ranks, stats_and_expectation, codec, algorithm)


def one_matrix(codec: str) -> tuple[int, float]:
    model = DistributedDataParallel(nn.Linear(1000, 1000, bias=False))
    state = fastcomm.register(model, codec, warmup_steps=0)
    model(torch.randn(4, 1000)).sum().backward()
    stats = state.stats
    return stats.wire_bytes, stats.ratio


@pytest.mark.parametrize(
    ("codec", "ratio"),
    [
        ("fp32", 1),
        ("fp16", 2),
        ("fp8", 3.98),
        ("int8", 3.98),
        ("int4", 7.86),
        ("int2", 15.5),
        ("sign", 30.1),
        ("topk:0.01", 99),
    ],
)
def test_two_ranks_send_one_payload_of_the_bucket_each(codec: str, ratio: float) -> None:
    for wire_bytes, measured_ratio in ranks.run(2, one_matrix, codec):
        whole = fastcomm.codec(codec).wire_bytes(1_000_000)
        # The ring sends it in two segments of up to six slices: some more headers.
        assert whole <= wire_bytes <= whole + 16 * 32 + _C.OPENING_RECORD_BYTES
        assert measured_ratio == pytest.approx(ratio, rel=0.01)


def silent_alone() -> fastcomm.Stats:
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int8")
    backward(model, 0)
    return state.stats


def test_one_rank_alone_sends_nothing() -> None:
    (stats,) = ranks.run(1, silent_alone)
    assert (stats.steps, stats.raw_bytes, stats.wire_bytes, stats.ratio) == (1, 0, 0, 1.0)
    assert stats.num_elements == sum(p.numel() for p in mlp().parameters())
