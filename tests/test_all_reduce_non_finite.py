"""What is not finite reaches every rank, and no residual."""

from itertools import product

import pytest
import torch
import torch.distributed as dist

import fastcomm
import ranks
from fastcomm import _C
from ledger import conservation_error, gradient
from promises import FORMATS, block_of, is_rotated

CODECS = (*FORMATS, "topk:0.01", "topk:0.3")
ALGORITHMS = _C.algorithm_names()

POISONS = [float("nan"), float("inf"), float("-inf")]
POISONED_ELEMENT = 1300
POISONED_RANK = 1


def affected_elements(codec: str) -> list[int]:
    block = block_of("int4" if codec == "topk:0.3" else codec)  # which it is sent as
    first = POISONED_ELEMENT // block * block
    return list(range(first, first + block))


def step_with_poison(codec: str, algorithm: str, poison: float) -> None:
    num_elements = 5000
    residual = 0.01 * gradient(num_elements, step=7)
    before = residual.clone()
    result = gradient(num_elements)
    if dist.get_rank() == POISONED_RANK:
        result[POISONED_ELEMENT] = poison
    fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
    affected = affected_elements(codec)
    where = f"{poison} by {algorithm}"
    assert result.isfinite().logical_not().nonzero().flatten().tolist() == affected, where
    assert residual.isfinite().all(), where
    if dist.get_rank() == POISONED_RANK:
        assert torch.equal(residual[affected], before[affected]), where

    mine, before = gradient(num_elements, step=1), residual.clone()
    result = mine.clone()
    fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
    block = block_of(codec) if is_rotated(codec) else 1
    assert conservation_error(result, mine, before, residual, block) <= 1e-6, where


def steps_with_poisons(codec: str) -> None:
    for algorithm, poison in product(ALGORITHMS, POISONS):
        step_with_poison(codec, algorithm, poison)


@pytest.mark.parametrize("codec", CODECS)
def test_non_finite_gradient_reaches_all_ranks_and_no_residual(codec: str) -> None:
    ranks.run(3, steps_with_poisons, codec)


def all_poisoned(codec: str) -> None:
    for algorithm in ALGORITHMS:
        residual = torch.zeros(3000)
        result = gradient(3000)
        if dist.get_rank() == POISONED_RANK:
            result.fill_(float("nan"))
        fastcomm.all_reduce(result, codec=codec, residual=residual, algorithm=algorithm)
        assert not result.isfinite().all(), algorithm
        assert residual.isfinite().all(), algorithm


@pytest.mark.parametrize("codec", CODECS)
def test_a_gradient_of_nothing_but_nan_leaves_residuals_finite(codec: str) -> None:
    # Top-k cannot send them all: what it leaves out must not end in the residual either.
    ranks.run(3, all_poisoned, codec)
