"""Copies of a DDP model with a hook: they have none, say so, and can be given one."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import backward, mlp


def deep_copied(model: DistributedDataParallel) -> DistributedDataParallel:
    return copy.deepcopy(model)


def pickled(model: DistributedDataParallel) -> DistributedDataParallel:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    restored = torch.load(buffer, weights_only=False)
    assert isinstance(restored, DistributedDataParallel)
    return restored


def copy_and_train(
    copied: Callable[[DistributedDataParallel], DistributedDataParallel],
) -> list[float]:
    """Return the bytes that the original, and the copy with a hook of its own, sent in a step."""
    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int8")
    backward(model, 0)
    before = state.stats.wire_bytes
    with pytest.warns(UserWarning, match=r"call fastcomm.register\(copy\)"):
        other = copied(model)
    uncompressed = backward(other, 1)
    assert state.stats.wire_bytes == before, "the copy used the original's hook"
    other_state = fastcomm.register(other, "fp32")
    for name, gradient in backward(other, 1).items():
        assert torch.allclose(gradient, uncompressed[name], rtol=1e-5, atol=1e-7)
    with pytest.raises(fastcomm.ArgumentError, match="has a communication hook already"):
        fastcomm.register(other)
    backward(model, 1)
    return [state.stats.wire_bytes - before, other_state.stats.wire_bytes]


@pytest.mark.parametrize("copied", [deep_copied, pickled])
def test_a_copy_warns_that_its_hook_is_gone_and_takes_a_new_one(
    copied: Callable[[DistributedDataParallel], DistributedDataParallel],
) -> None:
    for original, other in ranks.run(2, copy_and_train, copied):
        assert 0 < original < other
