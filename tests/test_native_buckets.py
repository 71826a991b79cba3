"""What the native layer does for a bucket of several codecs, and for one with a velocity."""

import re
from datetime import timedelta

import pytest
import torch

from fastcomm import _C
from fastcomm.errors import Error

FP32 = _C.CodecSpec("fp32")
SPARSE = _C.CodecSpec("topk", 0.02)


def gaussian(num_elements: int, seed: int) -> torch.Tensor:
    return torch.randn(num_elements, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def communicator() -> _C.Communicator:
    """One rank, whose exchanges encode and decode."""
    return _C.Communicator([], 1, timedelta())


def test_each_run_has_its_own_codec(communicator: _C.Communicator) -> None:
    plan = _C.BucketPlan([_C.CodecSpec("int8"), FP32], [(1000, 0), (500, 1)], "ring", None)
    gradient, residual = gaussian(1500, 1), torch.zeros(1500)
    bucket = gradient.clone()
    communicator.all_reduce(bucket, residual, plan, 1.0, 0, 0).wait()
    assert torch.equal(bucket[1000:], gradient[1000:])
    assert not torch.equal(bucket[:1000], gradient[:1000])
    assert torch.equal(bucket + residual, gradient)


def test_payload_bytes_counts_every_section() -> None:
    codecs = [_C.CodecSpec("int8"), SPARSE, _C.CodecSpec("topk", 0.1), FP32]
    runs = [(1000, 1), (2000, 0), (512, 3), (500, 2), (1000, 1)]
    header = _C.payload_bytes([FP32], 0)
    alone = [(SPARSE, 2000), (codecs[2], 500), (codecs[0], 2000), (FP32, 512)]
    expected = header + sum(_C.payload_bytes([spec], n) - header for spec, n in alone)
    assert _C.payload_bytes(codecs, 5012, runs=runs) == expected


def test_runs_of_codecs_that_are_not_there_are_errors(communicator: _C.Communicator) -> None:
    plan = _C.BucketPlan([FP32], [(100, 1)], "ring", None)
    with pytest.raises(Error, match="a run has codec 1 of a list of 1"):
        communicator.all_reduce(torch.zeros(100), None, plan, 1.0, 0, 0).wait()
    with pytest.raises(Error, match="no codec"):
        _C.payload_bytes([], 100)


@pytest.mark.parametrize("caller_waits", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_momentum_is_corrected_and_masked(
    communicator: _C.Communicator, dtype: torch.dtype, nesterov: bool, caller_waits: bool
) -> None:
    """Against algorithm 3 of Deep Gradient Compression, in torch."""
    size, momentum = 20_000, 0.9
    plan = _C.BucketPlan([SPARSE], [], "ring", None)
    velocity, residual = torch.zeros(size), torch.zeros(size)
    expected_velocity, expected_residual = velocity.clone(), residual.clone()
    for step in range(4):
        gradient = gaussian(size, step).to(dtype)
        wide = gradient.float()
        expected_velocity = momentum * expected_velocity + wide
        update = wide + momentum * expected_velocity if nesterov else expected_velocity
        expected_residual = expected_residual + update
        bucket = gradient.clone()
        communicator.all_reduce(
            bucket, residual, plan, 1.0, step, 0, caller_waits, velocity, momentum, nesterov
        ).wait()
        sent = torch.zeros(size, dtype=torch.bool)
        # Of values that tie, the first.
        order = torch.sort(expected_residual.abs(), descending=True, stable=True).indices
        sent[order[: size // 50]] = True
        expected_velocity[sent] = 0
        value = torch.where(sent, expected_residual, 0.0).bfloat16().float()
        expected_residual -= value
        assert torch.equal(bucket, value.to(dtype))
        assert torch.equal(velocity, expected_velocity)
        assert torch.equal(residual, expected_residual)


def test_a_velocity_that_does_not_fit_is_an_error(communicator: _C.Communicator) -> None:
    plan = _C.BucketPlan([SPARSE], [], "ring", None)
    bucket, residual = torch.zeros(100), torch.zeros(100)

    def reduce(residual: torch.Tensor | None, velocity: torch.Tensor) -> None:
        communicator.all_reduce(bucket, residual, plan, 1.0, 0, 0, velocity=velocity)

    with pytest.raises(Error, match="a velocity but no residual"):
        reduce(None, torch.zeros(100))
    with pytest.raises(Error, match=re.escape("velocity has 99 elements of Float, not 100")):
        reduce(residual, torch.zeros(99))
    with pytest.raises(Error, match="velocity has 100 elements of Double"):
        reduce(residual, torch.zeros(100, dtype=torch.float64))
    with pytest.raises(Error, match="velocity is not contiguous"):
        reduce(residual, torch.zeros(200)[::2])
    with pytest.raises(Error, match="velocity is on meta"):
        reduce(residual, torch.zeros(100, device="meta"))


def test_encode_masks_the_velocity_of_what_it_sends() -> None:
    gradient, velocity = gaussian(1000, 1), torch.ones(1000)
    payload = torch.empty(_C.payload_bytes([SPARSE], 1000), dtype=torch.uint8)
    workspace = _C.CodecWorkspace()
    _C.encode(SPARSE, gradient, None, [], payload, workspace, velocity=velocity)
    sent = torch.empty(1000)
    _C.decode(SPARSE, payload, sent, workspace)
    assert (sent != 0).sum() == 20
    assert torch.equal(velocity, (sent == 0).float())
