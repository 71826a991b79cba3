"""On a GPU, too: nothing is lost, no residual is ever non-finite, what is not finite arrives."""

from functools import cache

import numpy as np
import pytest
import torch

import fastcomm
import on_gpu
from inputs import DTYPES, INPUTS, residual_for
from on_gpu import GPU
from oracle_numbers import F32
from promises import (
    CODECS,
    TOLERANCE,
    accumulated,
    announced_as_non_finite,
    block_of,
    tolerances,
)

pytestmark = on_gpu.marks()

SIZE = 70_001  # two sub-blocks of top-k, and ragged in each codec's blocks
STEPS = 300


def round_trip(name: str, gradient: F32, residual: F32) -> tuple[F32, F32]:
    """Return the decoded elements and the residual afterwards."""
    codec = fastcomm.codec(name)
    left_out = torch.from_numpy(residual).to(GPU)
    payload = codec.encode(torch.from_numpy(gradient).to(GPU), left_out)
    decoded: F32 = codec.decode(payload).cpu().numpy()
    kept: F32 = left_out.cpu().numpy()
    return decoded, kept


@cache
def gradients_of_steps(dtype: torch.dtype) -> torch.Tensor:
    """Return a row for each step; their magnitudes change by some orders, and some units die."""
    random = np.random.default_rng(1)
    magnitudes = 10.0 ** (2 * np.sin(np.arange(STEPS) / 30) + random.uniform(-1, 1, STEPS))
    values = random.standard_normal((STEPS, SIZE), np.float32) * magnitudes[:, None]
    values[STEPS // 2 :, ::10] = 0
    return torch.from_numpy(values.astype(np.float32)).to(dtype).to(GPU)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_nothing_is_lost_over_many_steps(name: str, dtype: torch.dtype) -> None:
    gradients = gradients_of_steps(dtype)
    codec = fastcomm.codec(name)
    residual = torch.zeros(SIZE, device=GPU)
    delivered = torch.zeros(SIZE, dtype=torch.float64, device=GPU)
    for gradient in gradients.unbind():
        delivered += codec.decode(codec.encode(gradient, residual))
    total = gradients.sum(dim=0, dtype=torch.float64)
    magnitude = gradients.double().abs().sum(dim=0)
    assert ((delivered + residual - total).abs() / magnitude).max() <= TOLERANCE
    assert residual.isfinite().all()


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("name", CODECS)
def test_the_promises_hold_for_every_kind_of_gradient(name: str, make: str) -> None:
    for size in (1, 257, 1000, SIZE):
        random = np.random.default_rng(size + 1)
        gradient = INPUTS[make](random, size)
        residual = residual_for(gradient, random)
        value = accumulated(gradient, residual)
        decoded, left_out = round_trip(name, gradient, residual)
        assert np.isfinite(left_out).all(), "a residual is not finite"

        arrived = np.isfinite(value) & np.isfinite(decoded)
        total = decoded[arrived].astype(np.float64) + left_out[arrived].astype(np.float64)
        error = np.abs(total - value[arrived].astype(np.float64))
        magnitude = np.abs(np.where(arrived, value, 0)).astype(np.float32)
        assert np.all(error <= tolerances(name, magnitude)[arrived]), "something is lost"

        kept = ~np.isfinite(value) | ~np.isfinite(decoded)
        np.testing.assert_array_equal(left_out[kept], residual[kept])
        must, may = announced_as_non_finite(name, value)
        assert np.all(~np.isfinite(decoded[must])), "a non-finite element was lost on the way"
        assert np.all(may[~np.isfinite(decoded)]), "others became non-finite"


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", CODECS)
def test_one_non_finite_element_spoils_its_block_and_nothing_else(name: str, poison: float) -> None:
    position = 1300
    gradient = on_gpu.gaussian(5000).numpy()
    gradient[position] = poison
    before = on_gpu.gaussian(5000, 1).mul(0.01).numpy()
    decoded, left_out = round_trip(name, gradient, before)
    block = block_of(name)
    spoilt = np.arange(position // block * block, (position // block + 1) * block)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(decoded)), spoilt)
    np.testing.assert_array_equal(left_out[spoilt], before[spoilt])


@pytest.mark.parametrize("name", CODECS)
def test_a_gradient_of_nothing_but_nan_leaves_the_residual_alone(name: str) -> None:
    before = on_gpu.gaussian(SIZE).numpy()
    decoded, left_out = round_trip(name, np.full(SIZE, np.nan, np.float32), before)
    np.testing.assert_array_equal(left_out, before)
    if name.startswith("topk"):  # which has no room for all
        assert np.isnan(decoded).any()
    else:
        assert np.isnan(decoded).all()


@pytest.mark.parametrize("name", CODECS)
def test_denormals_are_not_flushed_to_zero(name: str) -> None:
    """Residuals of dead units decay to denormals; 1 / scale must not become Inf."""
    gradient = INPUTS["denormals"](np.random.default_rng(3), SIZE)
    decoded, left_out = round_trip(name, gradient, np.zeros(SIZE, np.float32))
    assert np.isfinite(decoded).all()
    total = decoded.astype(np.float64) + left_out
    # Of a rotation: what it makes of numbers near the smallest one is rounded to it.
    tolerance = tolerances(name, np.abs(gradient))
    assert np.all(np.abs(total - gradient) <= tolerance)


@pytest.mark.parametrize("name", CODECS)
def test_what_a_dead_unit_held_back_arrives_in_the_end(name: str) -> None:
    codec = fastcomm.codec(name)
    gradient = on_gpu.gaussian(700, 2).to(GPU)
    residual = torch.zeros(700, device=GPU)
    delivered = torch.zeros(700, dtype=torch.float64, device=GPU)
    for step in range(300):
        delivered += codec.decode(codec.encode(gradient if step == 0 else 0 * gradient, residual))
    assert residual.norm() <= 0.01 * gradient.norm()
    assert (delivered - gradient).norm() <= 0.01 * gradient.norm()
