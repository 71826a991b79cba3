"""Top-k sends exactly the largest elements, whatever they are."""

import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fastcomm import _C
from oracle_numbers import F32
from promises import accumulated, round_trip
from strategies import gradients_and_residuals

pytestmark = pytest.mark.timeout(3600)  # for the thorough profile


def num_sent(payload: bytes, num_elements: int) -> int:
    """Return how many entries the sub-blocks of a top-k payload count."""
    num_sub_blocks = (num_elements + 65535) // 65536
    return sum(struct.unpack_from(f"<{num_sub_blocks}I", payload, 32))


@given(gradients_and_residuals(), st.integers(1, 1100))
def test_topk_sends_exactly_k_elements_that_are_not_zero(
    arrays: tuple[F32, F32], wanted: int
) -> None:
    value = accumulated(*arrays)
    largest_density = _C.TOPK_LARGEST_SPARSE_DENSITY
    density = min(wanted / max(value.size, 1), largest_density)
    payload, decoded, _ = round_trip(f"topk:{density!r}", *arrays)
    k = min(max(round(density * value.size), 1), value.size)
    assert num_sent(payload, value.size) == min(k, np.count_nonzero(value))
    assert np.count_nonzero(decoded) <= k


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-3, 0.01, 0.1]),
    st.sampled_from([0, 1, 100, 30_000, 200_000]),
)
@settings(max_examples=15)
def test_topk_sends_exactly_k_of_a_large_bucket(seed: int, density: float, num_ties: int) -> None:
    """Large enough to be sampled; too many ties, all of them large, mislead the sample."""
    size = 200_000
    random = np.random.default_rng(seed)
    gradient = random.standard_normal(size).astype(np.float32)
    gradient[random.permutation(size)[:num_ties]] = 9
    payload, decoded, left_out = round_trip(f"topk:{density}", gradient, np.zeros_like(gradient))
    k = round(density * size)
    assert num_sent(payload, size) == k
    smallest_sent = np.abs(gradient[decoded != 0]).min()
    largest_kept = np.abs(gradient[decoded == 0]).max(initial=0)
    assert smallest_sent >= largest_kept
    if num_ties > k:  # ties go to the lowest index
        np.testing.assert_array_equal(np.flatnonzero(decoded), np.flatnonzero(gradient == 9)[:k])
    assert left_out is not None
    np.testing.assert_array_equal(decoded + left_out, gradient)
