"""The same over NCCL: one rank, and several that share the GPU where NCCL allows it."""

import functools
from typing import Any

import pytest

import gpu_exchanges
import gpu_training
import nccl_probe
import on_gpu
import ranks
from fastcomm import _C
from gpu_exchanges import in_nccl_group

pytestmark = on_gpu.marks()

ALGORITHMS = _C.algorithm_names()


@functools.cache
def working_way(num_ranks: int) -> tuple[str, str]:
    return nccl_probe.working_way(num_ranks)


def run_over_nccl(num_ranks: int, function: Any, *arguments: Any) -> list[Any]:
    """Run ``function(group, *arguments)`` on ranks that share the GPU, or skip the test."""
    way, refusal = working_way(num_ranks)
    if not way:
        pytest.skip(f"NCCL refuses {num_ranks} ranks on one GPU: {refusal}")
    results: list[Any] = ranks.run(num_ranks, in_nccl_group, way, function, *arguments)
    return results


@pytest.mark.parametrize("codec", ["fp32", "int8", "topk:0.01"])
def test_one_rank_alone_gets_its_own_gradient_exactly(codec: str) -> None:
    found = run_over_nccl(1, gpu_exchanges.reduce_all_ways, [on_gpu.GPU.type], codec, ALGORITHMS)
    expected = ranks.run(1, gpu_exchanges.reduce_all_ways, None, ["cpu"], codec, ALGORITHMS)
    assert found == expected


def test_one_rank_alone_trains_as_plain_ddp_does() -> None:
    (worst,) = run_over_nccl(1, gpu_training.worst_difference_from_plain_ddp, "int8")
    assert worst <= 1e-6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", ["fp32", "int8", "int4", "sign", "topk:0.01"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_get_the_bits_of_ranks_on_the_cpu(num_ranks: int, codec: str, algorithm: str) -> None:
    reduce = gpu_exchanges.reduce_all_ways
    found = run_over_nccl(num_ranks, reduce, [on_gpu.GPU.type] * num_ranks, codec, [algorithm])
    expected = ranks.run(num_ranks, reduce, None, ["cpu"] * num_ranks, codec, [algorithm])
    for of_nccl, of_cpu in zip(found, expected, strict=True):
        for how, (digests, worst) in of_nccl.items():
            assert digests == of_cpu[how][0], how
            assert worst <= 1e-6, how


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_segments_of_several_slices_are_the_cpus(algorithm: str) -> None:
    reduce, size = gpu_exchanges.reduce_twice, (9_000_001,)
    dtype = on_gpu.gaussian(0).dtype
    found = run_over_nccl(2, reduce, [on_gpu.GPU.type] * 2, "int8", algorithm, dtype, size)
    expected = ranks.run(2, reduce, None, ["cpu"] * 2, "int8", algorithm, dtype, size)
    assert [digests for digests, _ in found] == [digests for digests, _ in expected]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reductions_under_way_follow_their_streams(algorithm: str) -> None:
    run_over_nccl(2, gpu_exchanges.reduce_asynchronously, algorithm)


@pytest.mark.parametrize("codec", ["int8", "topk:0.01"])
def test_non_finite_elements_reach_all_ranks_and_no_residual(codec: str) -> None:
    for algorithm in ALGORITHMS:
        run_over_nccl(2, gpu_exchanges.step_with_poison, codec, algorithm)


@pytest.mark.parametrize("codec", ["bf16", "int8", "sign", "topk:0.05"])
def test_the_hook_loses_nothing(codec: str) -> None:
    for worst, devices in run_over_nccl(2, gpu_training.keep_books, codec):
        assert worst <= 1e-6
        assert devices == [on_gpu.GPU.type]


def test_fp32_hook_gives_plain_ddp_gradients() -> None:
    function = gpu_training.worst_difference_from_plain_ddp
    assert max(run_over_nccl(2, function, "fp32")) <= 1e-6


@pytest.mark.parametrize("codec", ["int8", "topk:0.05"])
def test_ranks_stay_equal_and_learn(codec: str) -> None:
    for loss, parameters_are_equal in run_over_nccl(2, gpu_training.final_loss, codec):
        assert loss < 1.5
        assert parameters_are_equal, "the ranks' models drifted apart"


def test_overflow_on_one_rank_makes_grad_scaler_skip_on_all() -> None:
    run_over_nccl(2, gpu_training.scale_gradients, "int8", float("inf"))
