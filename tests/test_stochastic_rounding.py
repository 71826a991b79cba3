"""Stochastic rounding over real processes: right on average, and reproducible to the bit."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import oracle
import ranks
from fastcomm import _C
from ledger import digest, gradient, sum_over_ranks
from oracle_numbers import F32
from promises import STOCHASTIC_CODECS
from training import backward, mlp

ALGORITHMS = _C.algorithm_names()


# --- the expectation ----------------------------------------------------------------------------

NUM_STEPS = 400
NUM_ELEMENTS = 1200


def average_over_steps(codec: str, algorithm: str) -> tuple[float, float]:
    """Return how far the mean result is from the sum: by RMS, and that of a single result."""
    mine = gradient(NUM_ELEMENTS)
    expected = sum_over_ranks(mine)
    mean = torch.zeros_like(expected)
    for _ in range(NUM_STEPS):
        result = mine.clone()
        fastcomm.all_reduce(result, codec=codec, algorithm=algorithm)
        mean += result.double() / NUM_STEPS
    return (mean - expected).norm().item(), (result.double() - expected).norm().item()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("codec", STOCHASTIC_CODECS)
def test_stochastic_rounding_is_unbiased_over_steps(codec: str, algorithm: str) -> None:
    for error_of_mean, error_of_one in ranks.run(2, average_over_steps, codec, algorithm):
        # Independent errors average out with the root of their number: all of it is chance.
        assert error_of_mean <= 1.1 * error_of_one / math.sqrt(NUM_STEPS)


def test_rounding_to_nearest_without_residual_is_biased() -> None:
    """Shows that the test above would notice."""
    for error_of_mean, error_of_one in ranks.run(2, average_over_steps, "int4", "gather"):
        assert error_of_mean == pytest.approx(error_of_one)


# --- the bits -----------------------------------------------------------------------------------


def reduce_some_steps(codec: str, algorithm: str) -> list[str]:
    results = []
    for step in range(3):
        for threads in (1, 3):
            result = gradient(150_001, step)
            fastcomm.all_reduce(result, codec=codec, algorithm=algorithm, codec_threads=threads)
            results.append(digest(result))
    return results


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_runs_and_all_ranks_give_the_same_bits(algorithm: str) -> None:
    runs = [ranks.run(3, reduce_some_steps, "int8:stochastic", algorithm) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][0] == runs[0][1] == runs[0][2]
    assert len(set(runs[0][0])) == 6, "each call draws other random numbers"
    other_seed = ranks.run(3, reduce_some_steps, "int8:stochastic,seed=1", algorithm)
    assert set(other_seed[0]).isdisjoint(runs[0][0])


def results_of_calls(codec: str, num_calls: int) -> list[F32]:
    results = []
    for call in range(num_calls):
        result = gradient(700, call)
        fastcomm.all_reduce(result, codec=codec, algorithm="gather")
        results.append(result.numpy())
    return results


@pytest.mark.parametrize("codec", STOCHASTIC_CODECS)
def test_random_numbers_are_those_of_seed_rank_step_and_bucket(codec: str) -> None:
    """What docs/wire_format.md says: call n of all_reduce is step n, its bucket n modulo 2."""
    name = f"{codec},seed=77"
    for results in ranks.run(3, results_of_calls, name, 3):
        for call, result in enumerate(results):
            payloads = [
                oracle.encode(name, gradient(700, call, rank), None, (), rank, call, call % 2)[0]
                for rank in range(3)
            ]
            assert oracle.decode(name, *payloads).tobytes() == result.tobytes(), f"call {call}"


# --- the hook -----------------------------------------------------------------------------------


def train(steps: range) -> list[str]:
    model = DistributedDataParallel(mlp(), find_unused_parameters=True)  # keeps its buckets
    state = fastcomm.register(model, "int8:stochastic,seed=9", error_feedback=False)
    state.load_state_dict(state.state_dict() | {"step": steps.start})
    digests = []
    for step in steps:
        found = backward(model, step)
        digests.append(digest(torch.cat([g.flatten() for g in found.values()])))
    assert not state.state_dict()["residuals"]
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, digests)
    assert all(other == digests for other in gathered), "the ranks' gradients differ"
    return digests


def test_hook_is_reproducible_and_a_resumed_run_draws_the_same_numbers() -> None:
    whole = ranks.run(2, train, range(6))
    assert ranks.run(2, train, range(6)) == whole
    assert ranks.run(2, train, range(3, 6))[0] == whole[0][3:]
