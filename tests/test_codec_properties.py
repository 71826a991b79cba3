"""What every codec promises, for any float32 bit pattern: conservation, containment, identity.

`pytest --hypothesis-profile=thorough` tries each with 10 000 gradients.
"""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given

import fastcomm
import oracle
from fastcomm import _C
from oracle_numbers import F32
from promises import (
    CODECS,
    FORMATS,
    LARGEST_ROTATABLE,
    STOCHASTIC_CODECS,
    TOLERANCE,
    accumulated,
    announced_as_non_finite,
    block_of,
    is_rotated,
    largest_in_block,
    round_trip,
    tolerances,
)
from strategies import float_arrays, gradients, gradients_and_residuals

pytestmark = pytest.mark.timeout(3600)  # for the thorough profile


@pytest.mark.parametrize("name", CODECS)
@given(arrays=gradients_and_residuals())
@example(arrays=(np.array([np.nan, 2e38, 1], np.float32), np.zeros(3, np.float32)))
def test_delivered_plus_residual_is_gradient_plus_residual(
    name: str, arrays: tuple[F32, F32]
) -> None:
    gradient, residual = arrays
    value = accumulated(gradient, residual)
    _, decoded, left_out = round_trip(name, gradient, residual)
    assert left_out is not None
    # NaN and Inf that top-k has no room for are neither delivered nor kept.
    arrived = np.isfinite(value) & np.isfinite(decoded)
    total = decoded[arrived].astype(np.float64) + left_out[arrived].astype(np.float64)
    error = np.abs(total - value[arrived].astype(np.float64))
    assert np.all(error <= tolerances(name, np.abs(np.where(arrived, value, 0)))[arrived])


@pytest.mark.parametrize("name", CODECS)
@given(arrays=gradients_and_residuals())
def test_residual_is_finite_and_stays_as_it_was_where_the_gradient_is_not(
    name: str, arrays: tuple[F32, F32]
) -> None:
    gradient, residual = arrays
    value = accumulated(gradient, residual)
    _, decoded, left_out = round_trip(name, gradient, residual)
    assert left_out is not None
    assert np.all(np.isfinite(left_out))
    kept = ~np.isfinite(value) | ~np.isfinite(decoded)
    np.testing.assert_array_equal(left_out[kept], residual[kept])


@pytest.mark.parametrize("name", CODECS)
@given(arrays=gradients_and_residuals())
def test_non_finite_elements_arrive_as_such_and_spoil_no_others(
    name: str, arrays: tuple[F32, F32]
) -> None:
    _, decoded, _ = round_trip(name, *arrays)
    must, may = announced_as_non_finite(name, accumulated(*arrays))
    arrived = ~np.isfinite(decoded)
    assert np.all(arrived[must]), "lost on the way"
    assert np.all(may[arrived]), "too many"


@pytest.mark.parametrize("name", [*CODECS, *STOCHASTIC_CODECS])
@given(arrays=gradients_and_residuals(), feedback=st.booleans(), other=gradients)
def test_every_instruction_set_gives_the_same_bytes(
    name: str, arrays: tuple[F32, F32], feedback: bool, other: F32
) -> None:
    gradient, residual = arrays[0], arrays[1] if feedback else None
    if name in STOCHASTIC_CODECS:
        residual = None
    incoming = np.resize(other, gradient.size).astype(np.float32)
    results = []
    try:
        for isa in _C.supported_isas():
            _C.force_isa(isa)
            received = [round_trip(name, incoming, None)[0]]
            for payload, decoded, left_out in (
                round_trip(name, gradient, residual),
                round_trip(name, gradient, residual, received),
            ):
                results.append((payload, decoded.tobytes()))
                results.append((b"" if left_out is None else left_out.tobytes(), b""))
    finally:
        _C.force_isa("")
    per_isa = len(results) // len(_C.supported_isas())
    for first in range(per_isa, len(results), per_isa):
        assert results[first : first + per_isa] == results[:per_isa]


@pytest.mark.parametrize("name", [*oracle.CODECS, *oracle.STOCHASTIC_CODECS])
@given(arrays=gradients_and_residuals(), other=gradients, num_received=st.integers(0, 2))
def test_any_gradient_gives_the_bytes_of_the_oracle(
    name: str, arrays: tuple[F32, F32], other: F32, num_received: int
) -> None:
    gradient, residual = arrays
    previous = None if name in oracle.STOCHASTIC_CODECS else residual
    incoming = torch.from_numpy(np.resize(other, gradient.size).astype(np.float32))
    received = [oracle.encode(name, incoming, None)[0]] * num_received
    payload, _, left_out = round_trip(name, gradient, previous, received)
    expected, expected_left_out = oracle.encode(
        name, torch.from_numpy(gradient), previous, received
    )
    assert payload == expected
    if left_out is not None and expected_left_out is not None:
        assert left_out.tobytes() == expected_left_out.tobytes()


moderate = float_arrays(finite=True, exponents=st.integers(-100, 100))


@pytest.mark.parametrize("name", CODECS)
@given(gradient=moderate, other=moderate, third=moderate)
def test_what_was_received_is_passed_on_or_kept(
    name: str, gradient: F32, other: F32, third: F32
) -> None:
    size = gradient.size
    parts = [gradient, *(np.resize(array, size).astype(np.float32) for array in (other, third))]
    limit = LARGEST_ROTATABLE / 8 if is_rotated(name) else 2.0**125
    parts = [np.clip(part, -limit, limit) for part in parts]
    received = [round_trip(name, part, None)[0] for part in parts[1:]]
    sent = [
        fastcomm.codec(name).decode(torch.frombuffer(bytearray(p), dtype=torch.uint8)).numpy()
        for p in received
    ]
    residual = parts[0][::-1].copy()
    _, decoded, left_out = round_trip(name, parts[0], residual, received)
    assert left_out is not None
    summands = [array.astype(np.float64) for array in (parts[0], residual, *sent)]
    magnitude = sum(np.abs(array) for array in summands)
    if is_rotated(name):
        magnitude = largest_in_block(np.asarray(magnitude), block_of(name))
    error = np.abs(decoded.astype(np.float64) + left_out - sum(summands))
    assert np.all(error <= TOLERANCE * np.asarray(magnitude) + 1e-42)


@pytest.mark.parametrize("name", STOCHASTIC_CODECS)
@given(gradient=gradients)
def test_stochastic_rounding_goes_to_one_of_the_two_next_levels(name: str, gradient: F32) -> None:
    _, decoded, _ = round_trip(name, gradient, None)
    base = name.partition(":")[0]
    non_finite, _ = announced_as_non_finite(base, gradient)
    np.testing.assert_array_equal(~np.isfinite(decoded), non_finite)
    values, arrived = (np.where(non_finite, 0, array) for array in (gradient, decoded))
    num_levels = 2 ** (FORMATS[base].code_bits - 1) - 1
    step = largest_in_block(np.abs(values), block_of(base)) / num_levels
    step *= 1 + 2.0**-7  # the scale is rounded up to bf16
    error = np.abs(arrived.astype(np.float64) - values)
    # Random numbers have 15 bits; the smallest blocks have no scale.
    assert np.all(error <= np.maximum(step * (1 + 2.0**-14), 2.0**-100))
