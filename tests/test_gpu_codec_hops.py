"""Hops on a GPU: what was received is added as the CPU adds it, bit by bit."""

import pytest
import torch

import on_gpu
from inputs import DTYPES, INPUTS
from on_gpu import CPU, ENCODERS, GPU, assert_same_output, encode

pytestmark = on_gpu.marks()

FEEDBACK = [(name, feedback) for name in ENCODERS for feedback in on_gpu.feedbacks_of(name)]


@pytest.mark.parametrize("num_received", [1, 3])
@pytest.mark.parametrize(("name", "feedback"), FEEDBACK)
def test_received_payloads_are_added_as_on_the_cpu(
    name: str, feedback: bool, num_received: int
) -> None:
    for given in on_gpu.inputs_of(name, torch.float32, feedback, num_received):
        assert_same_output(encode(name, given, GPU), encode(name, given, CPU), given.what)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float32], ids=str)
@pytest.mark.parametrize("name", ENCODERS)
def test_received_payloads_are_added_to_gradients_in_half_precision(
    name: str, dtype: torch.dtype
) -> None:
    feedback = on_gpu.feedbacks_of(name)[-1]
    for make in INPUTS:
        for size in (257, 4097):
            given = on_gpu.make_input(name, make, size, dtype, feedback, num_received=2)
            assert_same_output(encode(name, given, GPU), encode(name, given, CPU), given.what)


@pytest.mark.parametrize("name", ["fp32", "int8", "int4", "sign", "topk:0.01"])
def test_many_payloads_are_added_at_once(name: str) -> None:
    """As many as scatter_gather has ranks."""
    given = on_gpu.make_input(name, "gaussian", 70_001, torch.float32, True, num_received=31)
    assert_same_output(encode(name, given, GPU), encode(name, given, CPU), given.what)
