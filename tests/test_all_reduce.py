"""all_reduce on real processes: its result, and the invariants of the error-feedback schedules."""

import pytest
import torch
import torch.distributed as dist

import fastcomm
import ranks
from fastcomm import _C
from ledger import conservation_error, digest, gradient, sum_over_ranks
from promises import FORMATS, block_of, is_rotated

CODECS = (*FORMATS, "topk:0.01", "topk:0.3")
ALGORITHMS = _C.algorithm_names()
SIZES = (0, 1, 3, 7, 511, 513, 20_011)
STEPS = 2
# Every codec on three ranks, where each hop and each role differ; of other numbers, one of a kind.
RANKS_AND_CODECS = [
    *((3, codec) for codec in CODECS),
    *((n, codec) for n in (2, 4, 5) for codec in ("fp32", "int8", "sign", "topk:0.01")),
]


# --- fp32 is a plain all-reduce ---------------------------------------------------------------


def fp32_against_torch(algorithm: str) -> None:
    num_ranks = dist.get_world_size()
    for num_elements in SIZES:
        for op, divisor in ((dist.ReduceOp.SUM, 1), (dist.ReduceOp.AVG, num_ranks)):
            tensor = gradient(num_elements)
            expected = tensor.clone()
            dist.all_reduce(expected)
            magnitude = sum_over_ranks(tensor.abs()) / divisor
            fastcomm.all_reduce(tensor, op=op, codec="fp32", algorithm=algorithm)
            error = (tensor.double() - expected.double() / divisor).abs()
            assert (error <= 1e-6 * magnitude).all(), f"{op} of {num_elements} elements"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_fp32_equals_torch_all_reduce(num_ranks: int, algorithm: str) -> None:
    ranks.run(num_ranks, fp32_against_torch, algorithm)


def low_precision_against_f32(dtype: torch.dtype, algorithm: str) -> None:
    num_ranks = dist.get_world_size()
    # Multiples of 1/16 up to 8: exact in every dtype, and so is their f32 sum in any order.
    generator = torch.Generator().manual_seed(dist.get_rank())
    tensor = torch.randint(-128, 129, (10_007,), generator=generator).div(16).to(dtype)
    total = tensor.float()
    dist.all_reduce(total)

    summed = tensor.clone()
    fastcomm.all_reduce(summed, codec="fp32", algorithm=algorithm)
    assert torch.equal(summed, total.to(dtype)), "the sum was rounded more than once"

    averaged = tensor.clone()
    fastcomm.all_reduce(averaged, op=dist.ReduceOp.AVG, codec="fp32", algorithm=algorithm)
    expected = (total / num_ranks).to(dtype)
    torch.testing.assert_close(averaged, expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_ranks", [2, 5])
def test_low_precision_sums_are_accumulated_in_f32(
    num_ranks: int, dtype: torch.dtype, algorithm: str
) -> None:
    ranks.run(num_ranks, low_precision_against_f32, dtype, algorithm)


# --- identity and conservation ----------------------------------------------------------------


def keep_books(
    codec: str, algorithm: str, sizes: tuple[int, ...], steps: int
) -> tuple[list[str], float]:
    """Return the hash of every result, and the worst violation of conservation."""
    digests = []
    worst = 0.0
    block = block_of(codec) if is_rotated(codec) else 1
    for num_elements in sizes:
        residual = torch.zeros(num_elements)
        for step in range(steps):
            mine = gradient(num_elements, step)
            before = residual.clone()
            result = mine.clone()
            fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
            worst = max(worst, conservation_error(result, mine, before, residual, block))

            again, residual_again = mine.clone(), before.clone()
            fastcomm.all_reduce(again, codec=codec, residual=residual_again, algorithm=algorithm)
            assert digest(again) == digest(result), "same inputs, other result"
            assert digest(residual_again) == digest(residual), "same inputs, other residual"
            digests.append(digest(result))
    return digests, worst


def keep_books_of_all_algorithms(codec: str) -> dict[str, tuple[list[str], float]]:
    return {algorithm: keep_books(codec, algorithm, SIZES, STEPS) for algorithm in ALGORITHMS}


@pytest.mark.parametrize(("num_ranks", "codec"), RANKS_AND_CODECS)
def test_ranks_and_runs_are_identical_and_nothing_is_lost(num_ranks: int, codec: str) -> None:
    of_rank = ranks.run(num_ranks, keep_books_of_all_algorithms, codec)
    for algorithm, (digests, _) in of_rank[0].items():
        for other in of_rank:
            assert other[algorithm][0] == digests, f"the ranks' results of {algorithm} differ"
            assert other[algorithm][1] <= 1e-6, algorithm


# Every segment of the dense codecs has two or more slices, the last one odd.
SEVERAL_SLICES = {
    "fp32": 1_100_001,
    "int8": 4_300_001,
    "topk:0.01": 5_000_001,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", SEVERAL_SLICES)
def test_segments_of_several_slices_keep_the_invariants(codec: str, algorithm: str) -> None:
    of_rank = ranks.run(2, keep_books, codec, algorithm, (SEVERAL_SLICES[codec],), 1)
    assert of_rank[0][0] == of_rank[1][0], "the ranks' results differ"
    assert max(worst for _, worst in of_rank) <= 1e-6


@pytest.mark.parametrize("algorithm", ["ring", "scatter_gather"])
def test_slices_in_flight_between_three_ranks_keep_the_invariants(algorithm: str) -> None:
    of_rank = ranks.run(3, keep_books, "int8", algorithm, (7_500_001,), 1)
    assert of_rank[0][0] == of_rank[1][0] == of_rank[2][0], "the ranks' results differ"
    assert max(worst for _, worst in of_rank) <= 1e-6


def compressed_averages(codec: str) -> tuple[str, float]:
    summed, averaged = gradient(10_007), gradient(10_007)
    fastcomm.all_reduce(summed, codec=codec)
    fastcomm.all_reduce(averaged, op=dist.ReduceOp.AVG, codec=codec)
    difference = (averaged * dist.get_world_size() - summed).abs().max().item()
    return digest(averaged), difference


@pytest.mark.parametrize("codec", CODECS)
def test_average_is_the_sum_divided_by_the_number_of_ranks(codec: str) -> None:
    of_rank = ranks.run(3, compressed_averages, codec)
    assert len({digests for digests, _ in of_rank}) == 1
    assert max(difference for _, difference in of_rank) <= 2e-6


# --- one rank ---------------------------------------------------------------------------------


def reduce_alone(codec: str) -> None:
    for num_elements in SIZES:
        mine, residual = gradient(num_elements), torch.zeros(num_elements)
        for op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            result = mine.clone()
            fastcomm.all_reduce(result, op=op, codec=codec, residual=residual)
            assert torch.equal(result, mine), f"{num_elements} elements"
            assert not residual.any()


@pytest.mark.parametrize("codec", CODECS)
def test_one_rank_alone_gets_its_own_gradient_exactly(codec: str) -> None:
    ranks.run(1, reduce_alone, codec)
