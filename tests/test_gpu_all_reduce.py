"""Ranks on a GPU, over gloo: what they get is what ranks on the CPU get, bit by bit."""

import pytest
import torch

import fastcomm
import on_gpu
import ranks
from fastcomm import _C
from gpu_exchanges import (
    average_and_sum,
    reduce_all_ways,
    reduce_asynchronously,
    step_with_poison,
)
from ledger import gradient
from on_gpu import GPU
from promises import FORMATS

pytestmark = on_gpu.marks()

ALGORITHMS = _C.algorithm_names()
# Every codec on two ranks; of other numbers, one of a kind.
RANKS_AND_CODECS = [
    *((2, codec) for codec in (*FORMATS, "topk:0.01", "topk:0.3")),
    *((n, codec) for n in (1, 3, 4) for codec in ("fp32", "int8", "sign", "topk:0.01")),
]


@pytest.mark.parametrize(("num_ranks", "codec"), RANKS_AND_CODECS)
def test_ranks_on_one_gpu_get_the_bits_of_ranks_on_the_cpu(num_ranks: int, codec: str) -> None:
    on_gpu, on_cpu = (
        ranks.run(num_ranks, reduce_all_ways, None, [device] * num_ranks, codec, ALGORITHMS)
        for device in (GPU.type, "cpu")
    )
    for rank, (found, expected) in enumerate(zip(on_gpu, on_cpu, strict=True)):
        for how, (digests, worst) in found.items():
            assert digests == expected[how][0], f"rank {rank}, {how}"
            assert worst <= 1e-6, f"rank {rank}, {how}: something is lost"


@pytest.mark.parametrize("devices", [["cpu", GPU.type], [GPU.type, "cpu", GPU.type]], ids=len)
@pytest.mark.parametrize("codec", ["fp32", "int8", "int4", "sign", "topk:0.01"])
def test_groups_of_both_devices_get_the_same_bits(codec: str, devices: list[str]) -> None:
    num_ranks = len(devices)
    mixed = ranks.run(num_ranks, reduce_all_ways, None, devices, codec, ALGORITHMS)
    on_cpu = ranks.run(num_ranks, reduce_all_ways, None, ["cpu"] * num_ranks, codec, ALGORITHMS)
    assert mixed == on_cpu


# Every segment has two or more slices, the last one odd.
@pytest.mark.parametrize(
    ("num_ranks", "codec", "size"),
    [(2, "fp32", 1_100_001), (2, "topk:0.01", 17_000_001), (3, "int8", 13_500_001)],
)
def test_segments_of_several_slices_are_the_cpus(num_ranks: int, codec: str, size: int) -> None:
    algorithms = ["ring", "scatter_gather"] if num_ranks > 2 else ALGORITHMS
    for algorithm in algorithms:
        on_gpu, on_cpu = (
            ranks.run(
                num_ranks, reduce_all_ways, None, [d] * num_ranks, codec, [algorithm], (size,)
            )
            for d in (GPU.type, "cpu")
        )
        for found, expected in zip(on_gpu, on_cpu, strict=True):
            assert {how: d for how, (d, _) in found.items()} == {
                how: d for how, (d, _) in expected.items()
            }
            assert max(worst for _, worst in found.values()) <= 1e-6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reductions_under_way_follow_their_streams(algorithm: str) -> None:
    ranks.run(2, reduce_asynchronously, None, algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", ["fp32", "int8", "sign", "topk:0.01"])
def test_non_finite_elements_reach_all_ranks_and_no_residual(codec: str, algorithm: str) -> None:
    ranks.run(3, step_with_poison, None, codec, algorithm)


@pytest.mark.parametrize("codec", ["fp32", "int8", "topk:0.01"])
def test_average_is_the_sum_divided_by_the_number_of_ranks(codec: str) -> None:
    assert max(ranks.run(3, average_and_sum, None, codec)) <= 2e-6


def use_other_codecs(codecs: list[str]) -> str:
    tensor = gradient(1000).to(GPU)
    with pytest.raises(fastcomm.MismatchError) as caught:
        fastcomm.all_reduce(tensor, codec=codecs[torch.distributed.get_rank()])
    assert torch.equal(tensor.cpu(), gradient(1000)), "data has flowed"
    return str(caught.value)


def test_ranks_with_other_codecs_are_told_so_before_data_flows() -> None:
    for message in ranks.run(2, use_other_codecs, ["int8", "int4"]):
        assert "the ranks disagree on codec" in message


def reduce_on_two_devices() -> str:
    with pytest.raises(fastcomm.ArgumentError) as caught:
        fastcomm.all_reduce(torch.ones(10, device=GPU), residual=torch.zeros(10))
    return str(caught.value)


def test_a_residual_on_another_device_is_refused() -> None:
    (message,) = ranks.run(1, reduce_on_two_devices)
    assert "residual" in message
    assert "cuda" in message
