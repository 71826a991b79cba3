"""What every codec promises, for any float32 bit pattern: conservation, containment, identity."""

import struct

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings

import fastcomm
import oracle
from fastcomm import _C
from oracle import F32

CODECS = ["fp32", "bf16", "int8", "int4", "topk:0.02", "topk:0.12"]
BLOCKS = {"int8": 512, "int4": 256}
# Above it a block of int8 or int4 has no scale and is sent as non-finite.
LARGEST_SCALABLE = 2.0**127

# Bit patterns where something changes: zeros, denormals, the smallest and the largest block that
# has a scale, ties of the rounding to bf16, the largest bf16 and f32, Inf, quiet NaNs.
SPECIAL_BITS = [
    *(0x00000000, 0x00000001, 0x00007FFF, 0x00008000, 0x007FFFFF, 0x00800000),
    *(0x0D7FFFFF, 0x0D800000, 0x3F800000, 0x3F808000, 0x3F818000, 0x7EFFFFFF, 0x7F000000),
    *(0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7FC12345),
]
SIGN = 0x80000000


@st.composite
def float_arrays(draw: st.DrawFn, max_size: int = 1100, finite: bool = False) -> F32:
    """Arrays of random floats of one style, with special bit patterns at some places."""
    size = draw(st.integers(0, max_size))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    style = draw(st.sampled_from(["bits", "gaussian", "multiples", "zeros"]))
    exponent = draw(st.integers(-149, 126))
    with np.errstate(over="ignore"):
        if style == "bits":
            values = random.integers(0, 2**32, size, np.uint32).view(np.float32)
        elif style == "gaussian":
            values = np.asarray(random.standard_normal(size) * 2.0**exponent, np.float32)
        elif style == "multiples":  # ties among magnitudes, and values between two codes
            values = np.asarray(random.integers(-14, 15, size) / 2 * 2.0**exponent, np.float32)
        else:
            values = np.zeros(size, np.float32)
    bits = values.view(np.uint32)
    any_bits = st.sampled_from(SPECIAL_BITS) | st.integers(0, SIGN - 1)
    places = st.integers(0, max(size - 1, 0))
    signs = st.sampled_from([0, SIGN])
    for place, magnitude, sign in draw(
        st.lists(st.tuples(places, any_bits, signs), max_size=8 if size else 0)
    ):
        bits[place] = magnitude | sign
    if finite:
        values[~np.isfinite(values)] = 0
    return values


gradients = float_arrays()


@st.composite
def gradients_and_residuals(draw: st.DrawFn) -> tuple[F32, F32]:
    gradient = draw(gradients)
    residual = np.resize(draw(float_arrays(finite=True)), gradient.size).astype(np.float32)
    return gradient, residual


def accumulated(gradient: F32, residual: F32) -> F32:
    with np.errstate(over="ignore", invalid="ignore"):
        return gradient + residual


def round_trip(name: str, gradient: F32, residual: F32) -> tuple[bytes, F32, F32]:
    """Return payload, decoded elements, and the residual afterwards."""
    left_out = torch.from_numpy(residual.copy())
    codec = fastcomm.codec(name)
    payload = codec.encode(torch.from_numpy(gradient), left_out)
    decoded: F32 = codec.decode(payload).numpy()
    return payload.numpy().tobytes(), decoded, left_out.numpy()


def announced_as_non_finite(name: str, value: F32) -> npt.NDArray[np.bool_]:
    """Return which elements the documentation says to decode to a non-finite value."""
    non_finite = ~np.isfinite(value)
    if name.startswith("topk"):
        # No more than k elements have room, NaN before Inf.
        k = oracle.topk_count(float(name.removeprefix("topk:")), value.size)
        selected = np.zeros(value.size, np.bool_)
        selected[oracle.topk_select(value, k)] = True
        return non_finite & selected
    if name in BLOCKS:
        for first in range(0, value.size, BLOCKS[name]):
            block = slice(first, first + BLOCKS[name])
            non_finite[block] = not np.all(np.abs(value[block]) < LARGEST_SCALABLE)
    return non_finite


def num_sent(payload: bytes, num_elements: int) -> int:
    """Return how many entries the sub-blocks of a top-k payload count."""
    num_sub_blocks = (num_elements + 65535) // 65536
    return sum(struct.unpack_from(f"<{num_sub_blocks}I", payload, 32))


@pytest.mark.parametrize("name", CODECS)
@given(gradients_and_residuals())
@settings(max_examples=150)
def test_residual_stays_finite_whatever_the_gradient(name: str, arrays: tuple[F32, F32]) -> None:
    _, _, left_out = round_trip(name, *arrays)
    assert np.all(np.isfinite(left_out))


@pytest.mark.parametrize("name", CODECS)
@given(gradients_and_residuals())
@example((np.array([np.nan, 2e38, 1], np.float32), np.zeros(3, np.float32)))
@settings(max_examples=250)
def test_delivered_plus_residual_is_gradient_plus_residual_exactly(
    name: str, arrays: tuple[F32, F32]
) -> None:
    gradient, residual = arrays
    value = accumulated(gradient, residual)
    _, decoded, left_out = round_trip(name, gradient, residual)
    kept = announced_as_non_finite(name, value)
    # NaN and Inf that top-k has no room for are neither delivered nor kept.
    exact = np.isfinite(value) & ~kept
    total = decoded[exact].astype(np.float64) + left_out[exact].astype(np.float64)
    np.testing.assert_array_equal(total, value[exact].astype(np.float64))
    # Where the sum is announced as non-finite, the residual keeps its previous value.
    np.testing.assert_array_equal(left_out[kept], residual[kept])


@pytest.mark.parametrize("name", CODECS)
@given(gradients_and_residuals())
@settings(max_examples=150)
def test_non_finite_elements_arrive_as_such_and_spoil_no_others(
    name: str, arrays: tuple[F32, F32]
) -> None:
    _, decoded, _ = round_trip(name, *arrays)
    expected = announced_as_non_finite(name, accumulated(*arrays))
    np.testing.assert_array_equal(~np.isfinite(decoded), expected)


@pytest.mark.parametrize("name", CODECS)
@given(gradients_and_residuals(), st.booleans())
@settings(max_examples=150)
def test_every_instruction_set_gives_the_bytes_of_the_oracle(
    name: str, arrays: tuple[F32, F32], feedback: bool
) -> None:
    gradient, residual = (torch.from_numpy(array) for array in arrays)
    previous = arrays[1] if feedback else None
    expected, expected_left_out = oracle.encode(name, gradient, previous)
    try:
        for isa in _C.supported_isas():
            _C.force_isa(isa)
            left_out = residual.clone() if feedback else None
            payload = fastcomm.codec(name).encode(gradient, left_out)
            assert payload.numpy().tobytes() == expected, isa
            if left_out is not None and expected_left_out is not None:
                assert left_out.numpy().tobytes() == expected_left_out.tobytes(), isa
    finally:
        _C.force_isa("")


@given(gradients_and_residuals(), st.integers(1, 1100))
@settings(max_examples=150)
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
    np.testing.assert_array_equal(decoded + left_out, gradient)


@pytest.mark.parametrize("name", CODECS)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 2000),
    exponent=st.integers(-140, 90),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=15)
def test_nothing_is_lost_over_many_steps(
    name: str, seed: int, size: int, exponent: int, dtype: torch.dtype
) -> None:
    """Sum of what was delivered + final residual = sum of the gradients."""
    random = np.random.default_rng(seed)
    codec = fastcomm.codec(name)
    # Some units die: their residuals must decay or stay, and never turn into Inf or vanish.
    alive = random.random(size) < 0.9
    residual = torch.zeros(size)
    delivered = np.zeros(size)
    total = np.zeros(size)
    magnitude = np.zeros(size)
    for step in range(50):
        values = random.standard_normal(size) * 2.0**exponent * (alive | (step < 3))
        gradient = torch.from_numpy(values).to(dtype)
        total += gradient.double().numpy()
        magnitude += np.abs(gradient.double().numpy())
        delivered += codec.decode(codec.encode(gradient, residual)).double().numpy()
    error = np.linalg.norm(delivered + residual.double().numpy() - total)
    assert error <= 1e-6 * np.linalg.norm(magnitude)
