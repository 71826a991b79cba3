"""Nothing is lost over many steps: what was delivered and what is held back is what went in."""

from functools import cache

import numpy as np
import pytest
import torch

import fastcomm
from fastcomm import _C
from inputs import DTYPES
from oracle_rotation import ROTATION, rotated_back, transformed
from promises import CODECS, TOLERANCE, is_rotated

SIZE = 700  # two blocks and a tail of each codec with blocks of 256, one and a tail of the others
STEPS = 10_000


@cache
def gradients_of_steps(dtype: torch.dtype) -> torch.Tensor:
    """Return a row for each step; their magnitudes change by some orders, and some units die."""
    random = np.random.default_rng(1)
    magnitudes = 10.0 ** (2 * np.sin(np.arange(STEPS) / 300) + random.uniform(-1, 1, STEPS))
    values = random.standard_normal((STEPS, SIZE), np.float32) * magnitudes[:, None]
    values[STEPS // 2 :, ::10] = 0
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CODECS)
def test_nothing_is_lost_over_ten_thousand_steps(name: str, dtype: torch.dtype) -> None:
    gradients = gradients_of_steps(dtype)
    codec = fastcomm.codec(name)
    spec, workspace = codec.spec, _C.CodecWorkspace()
    payload = torch.empty(codec.wire_bytes(SIZE), dtype=torch.uint8)
    residual, decoded = torch.zeros(SIZE), torch.empty(SIZE)
    delivered = torch.zeros(SIZE, dtype=torch.float64)
    for gradient in gradients.unbind():
        _C.encode(spec, gradient, residual, [], payload, workspace)
        _C.decode(spec, payload, decoded, workspace)
        delivered += decoded
    total = gradients.sum(dim=0, dtype=torch.float64)
    magnitude = gradients.double().abs().sum(dim=0)
    error = (delivered + residual - total).abs() / magnitude
    assert error.max() <= TOLERANCE


@pytest.mark.parametrize("name", CODECS)
def test_what_a_dead_unit_held_back_arrives_in_the_end(name: str) -> None:
    """Error feedback ends: without new gradients the residuals drain."""
    codec = fastcomm.codec(name)
    gradient = torch.from_numpy(np.random.default_rng(2).standard_normal(SIZE, np.float32))
    residual, delivered = torch.zeros(SIZE), torch.zeros(SIZE, dtype=torch.float64)
    for step in range(300):
        delivered += codec.decode(codec.encode(gradient if step == 0 else 0 * gradient, residual))
    assert residual.norm() <= 0.01 * gradient.norm()
    assert (delivered - gradient).norm() <= 0.01 * gradient.norm()


ROTATED_CODECS = [name for name in CODECS if is_rotated(name)]


@pytest.mark.parametrize("name", ROTATED_CODECS)
def test_residual_stays_finite_where_a_rotation_overflows(name: str) -> None:
    """The worst that can be rotated back: all that is left out adds up in one element."""
    unit = np.zeros(ROTATION, np.float32)
    unit[37] = 1
    signs = np.sign(transformed(unit))
    large = np.where(np.arange(ROTATION) < 24, signs, -0.001 * signs)
    codec = fastcomm.codec(name)
    for exponent in np.arange(110, 123.25, 0.125):
        gradient = rotated_back((large * 2.0**exponent).astype(np.float32), seed=0)
        residual = torch.zeros(ROTATION)
        codec.encode(torch.from_numpy(gradient), residual)
        assert residual.isfinite().all(), f"gradient of {np.abs(gradient).max():g}"


def test_residual_keeps_its_value_where_a_rotation_overflows_on_arrival() -> None:
    """Three times the scale of each, where the values themselves add up to no more than 2^128."""
    codec = fastcomm.codec("int2")
    for exponent in np.arange(110, 127, 0.01):
        gradient = torch.tensor([5e34, float(2.0**exponent), -13, -1.66e31, 0])
        residual = torch.ones(5)
        decoded = codec.decode(codec.encode(gradient, residual))
        kept = ~decoded.isfinite()
        assert torch.equal(residual[kept], torch.ones(5)[kept])
