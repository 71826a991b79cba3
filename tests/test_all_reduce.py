"""all_reduce on real processes: its result, and the invariants of the error-feedback schedules."""

import pytest
import torch
import torch.distributed as dist

import fastcomm
import ranks
from ledger import conservation_error, digest, gradient, sum_over_ranks

CODECS = ("fp32", "bf16", "int8", "int4", "topk:0.01", "topk:0.3")
ALGORITHMS = ("ring", "gather")
RANKS = (2, 3, 4, 5)
SIZES = (0, 1, 3, 7, 511, 513, 100_003)
STEPS = 3


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
@pytest.mark.parametrize("num_ranks", RANKS)
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
@pytest.mark.parametrize("num_ranks", [2, 3, 5])
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
    for num_elements in sizes:
        residual = torch.zeros(num_elements)
        for step in range(steps):
            mine = gradient(num_elements, step)
            before = residual.clone()
            result = mine.clone()
            fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
            worst = max(worst, conservation_error(result, mine, before, residual))

            again, residual_again = mine.clone(), before.clone()
            fastcomm.all_reduce(again, codec=codec, residual=residual_again, algorithm=algorithm)
            assert digest(again) == digest(result), "same inputs, other result"
            assert digest(residual_again) == digest(residual), "same inputs, other residual"
            digests.append(digest(result))
    return digests, worst


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_ranks", RANKS)
def test_ranks_and_runs_are_identical_and_nothing_is_lost(
    num_ranks: int, codec: str, algorithm: str
) -> None:
    of_rank = ranks.run(num_ranks, keep_books, codec, algorithm, SIZES, STEPS)
    for digests, _ in of_rank[1:]:
        assert digests == of_rank[0][0], "the ranks' results differ"
    assert max(worst for _, worst in of_rank) <= 1e-6


# Every segment of the dense codecs has two or more slices, the last one odd.
SEVERAL_SLICES = {
    "fp32": 1_300_001,
    "bf16": 2_600_001,
    "int8": 5_000_001,
    "int4": 4_500_001,
    "topk:0.01": 5_000_001,
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", SEVERAL_SLICES)
def test_segments_of_several_slices_keep_the_invariants(codec: str, algorithm: str) -> None:
    of_rank = ranks.run(2, keep_books, codec, algorithm, (SEVERAL_SLICES[codec],), 1)
    assert of_rank[0][0] == of_rank[1][0], "the ranks' results differ"
    assert max(worst for _, worst in of_rank) <= 1e-6


def test_slices_in_flight_around_a_ring_of_three_keep_the_invariants() -> None:
    of_rank = ranks.run(3, keep_books, "int8", "ring", (7_500_001,), 1)
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


# --- non-finite gradients ---------------------------------------------------------------------

POISONED_ELEMENT = 1300
POISONED_RANK = 1


def step_with_poison(
    codec: str, algorithm: str, poison: float
) -> tuple[list[int], bool, bool, float]:
    """Return non-finite elements of the result, two facts on residuals, the next step's error."""
    num_elements = 5000
    residual = 0.01 * gradient(num_elements, step=7)
    before = residual.clone()
    result = gradient(num_elements)
    if dist.get_rank() == POISONED_RANK:
        result[POISONED_ELEMENT] = poison
    fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
    non_finite = result.isfinite().logical_not().nonzero().flatten().tolist()
    is_finite = bool(residual.isfinite().all())
    is_kept = residual[POISONED_ELEMENT].item() == before[POISONED_ELEMENT].item()

    mine, before = gradient(num_elements, step=1), residual.clone()
    result = mine.clone()
    fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
    return non_finite, is_finite, is_kept, conservation_error(result, mine, before, residual)


def affected_elements(codec: str) -> list[int]:
    block = {"int8": 512, "int4": 256, "topk:0.3": 256}.get(codec, 1)  # topk:0.3 is sent as int4
    first = POISONED_ELEMENT // block * block
    return list(range(first, first + block))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", CODECS)
def test_non_finite_gradient_reaches_all_ranks_and_no_residual(
    codec: str, algorithm: str, poison: float
) -> None:
    of_rank = ranks.run(3, step_with_poison, codec, algorithm, poison)
    for non_finite, residual_is_finite, _, next_step_error in of_rank:
        assert non_finite == affected_elements(codec)
        assert residual_is_finite
        assert next_step_error <= 1e-6
    assert of_rank[POISONED_RANK][2], "the residual under the poison must keep its value"


def all_poisoned(codec: str, algorithm: str) -> tuple[bool, bool]:
    residual = torch.zeros(3000)
    result = gradient(3000)
    if dist.get_rank() == POISONED_RANK:
        result.fill_(float("nan"))
    fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
    return bool(result.isfinite().all()), bool(residual.isfinite().all())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_gradient_of_nothing_but_nan_leaves_residuals_finite(codec: str, algorithm: str) -> None:
    # Top-k cannot send them all: what it leaves out must not end in the residual either.
    for result_is_finite, residual_is_finite in ranks.run(3, all_poisoned, codec, algorithm):
        assert not result_is_finite
        assert residual_is_finite


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
