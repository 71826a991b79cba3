"""Modes of DDP that bring a hook of their own, or call hooks in another way: work, or say so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    fp16_compress_hook,
)
from torch.distributed.optim import (  # type: ignore[attr-defined]  # torch lacks __all__ there
    _apply_optimizer_in_backward,
)
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _MixedPrecision

import fastcomm
import ranks
from training import backward, conserving_step, gradients, loss_of, mlp, residuals


def refused(model: DistributedDataParallel) -> str:
    """Return why fastcomm.register refuses a model."""
    with pytest.raises(fastcomm.ArgumentError) as caught:
        fastcomm.register(model)
    return str(caught.value)


def refused_by_torch(use: Callable[[], object]) -> None:
    """PyTorch's own call registers a second hook: PyTorch raises, before anything is sent."""
    with pytest.raises(RuntimeError, match="can only be called once"):
        use()


# --- a second hook ----------------------------------------------------------------------------


def register_second_hook() -> list[str]:
    messages = []
    with_own = DistributedDataParallel(mlp())
    with_own.register_comm_hook(None, fp16_compress_hook)
    messages.append(refused(with_own))
    backward(with_own, 0)

    built_in = DistributedDataParallel(mlp())
    kinds: Any = dist.BuiltinCommHookType  # type: ignore[attr-defined]  # torch's stubs lack it
    built_in._register_builtin_comm_hook(kinds.FP16_COMPRESS)  # type: ignore[no-untyped-call]
    messages.append(refused(built_in))
    messages.append(refused(built_in))  # what was refused leaves no trace
    backward(built_in, 0)

    model = DistributedDataParallel(mlp())
    state = fastcomm.register(model, "int4")
    messages.append(refused(model))
    refused_by_torch(lambda: model.register_comm_hook(state, fastcomm.compress_hook))
    refused_by_torch(lambda: model.register_comm_hook(dist.group.WORLD, allreduce_hook))
    assert max(conserving_step(model, state, step) for step in range(3)) <= 1e-6
    return messages


def test_second_hook_is_refused_and_the_first_one_goes_on() -> None:
    for own, built_in, again, registered in ranks.run(2, register_second_hook):
        for message in (own, registered):
            assert "has a communication hook already" in message
        for message in (built_in, again):
            assert "can only be called once" in message
        for message in (own, registered, built_in, again):
            assert "wrap the module in a new DistributedDataParallel" in message


# --- modes with a hook of their own -----------------------------------------------------------


def register_with_mixed_precision() -> str:
    precision = _MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    model = DistributedDataParallel(mlp(), mixed_precision=precision)
    state = fastcomm.HookState("int8")
    refused_by_torch(lambda: model.register_comm_hook(state, fastcomm.compress_hook))
    assert state.stats.wire_bytes == 0
    return refused(DistributedDataParallel(mlp(), mixed_precision=precision))


def test_mixed_precision_is_refused_with_the_way_out() -> None:
    for message in ranks.run(2, register_with_mixed_precision):
        assert "mixed_precision=...) brings its own hook; use torch.autocast" in message


def fused(module: nn.Module) -> nn.Module:
    _apply_optimizer_in_backward(torch.optim.SGD, module.parameters(), {"lr": 0.1})
    return module


def register_with_fused_optimizer() -> str:
    model = DistributedDataParallel(fused(mlp()))
    model.register_comm_hook(fastcomm.HookState("int8"), fastcomm.compress_hook)
    for _ in range(2):  # PyTorch registers its hook in the first forward pass
        refused_by_torch(lambda: loss_of(model, 0))
    return refused(DistributedDataParallel(fused(mlp())))


def test_optimizer_fused_into_backward_is_refused_with_the_way_out() -> None:
    for message in ranks.run(2, register_with_fused_optimizer):
        assert "_apply_optimizer_in_backward" in message
        assert "use an optimizer that steps afterwards" in message


# --- torch.compile ----------------------------------------------------------------------------


class Model(nn.Module):
    """A module of the user's own: those of torch.nn are not compiled by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(width=6001)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.layers(inputs)
        return logits


def compiled_step(model: nn.Module, step: int) -> None:
    loss_of(model, step).backward()  # type: ignore[no-untyped-call]


def use_python_reducer(in_compiled_autograd: bool) -> list[str]:
    torch._dynamo.reset()
    patch = {"optimize_ddp": "python_reducer", "compiled_autograd": in_compiled_autograd}
    with torch._dynamo.config.patch(patch):
        model = DistributedDataParallel(mlp())
        messages = [refused(model)]
        model.register_comm_hook(fastcomm.HookState("int8"), fastcomm.compress_hook)
        step: Any = torch.compile(compiled_step, backend="eager")
        with pytest.raises(RuntimeError) as caught:
            step(model, 0)
        messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize("in_compiled_autograd", [False, True])
def test_python_reducer_of_compiled_autograd_is_refused(in_compiled_autograd: bool) -> None:
    for at_register, in_backward in ranks.run(2, use_python_reducer, in_compiled_autograd):
        assert "called with a tuple instead of a GradBucket" in in_backward
        for message in (at_register, in_backward):
            assert 'torch._dynamo.config.optimize_ddp = "ddp_optimizer"' in message


def compile_with_ddp_optimizer(codec: str, compiled_autograd: bool) -> tuple[int, float]:
    """Return how many graphs there are, and the worst difference from plain DDP's gradients."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    patch = {"optimize_ddp": "ddp_optimizer", "compiled_autograd": compiled_autograd}
    with torch._dynamo.config.patch(patch):
        plain, model = (DistributedDataParallel(Model(), bucket_cap_mb=1) for _ in "ab")
        state = fastcomm.register(model, codec, warmup_steps=0)
        compiled: Any = torch.compile(model, backend=backend)
        worst = 0.0
        for step in range(4):
            expected = backward(plain, step)
            compiled.zero_grad()
            loss_of(compiled, step).backward()  # type: ignore[no-untyped-call]
            for name, gradient in gradients(model).items():
                error = (gradient - expected[name]).abs().max() / expected[name].abs().max()
                worst = max(worst, error.item())
    assert state.stats.steps == 4
    assert residuals(state).keys() == ({*expected} if state.codec.loses_bits else set())
    return len(graphs), worst


@pytest.mark.parametrize("compiled_autograd", [False, True])
@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 1e-6), ("int8", 0.03)])
def test_compiled_model_is_split_by_bucket_and_gets_ddp_gradients(
    codec: str, tolerance: float, compiled_autograd: bool
) -> None:
    for graphs, worst in ranks.run(2, compile_with_ddp_optimizer, codec, compiled_autograd):
        assert graphs > 1, "DDPOptimizer did not split the model: this tests nothing"
        assert worst <= tolerance


# --- deterministic algorithms -----------------------------------------------------------------


def train_deterministically(codec: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        model = DistributedDataParallel(mlp(width=6001), bucket_cap_mb=1)
        state = fastcomm.register(model, codec, warmup_steps=0)
        assert max(conserving_step(model, state, step) for step in range(4)) <= 1e-6
        saved = state.state_dict()
        expected = backward(model, 4)
        state.load_state_dict(saved)
        again = backward(model, 4)
        assert all(torch.equal(again[name], expected[name]) for name in expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("codec", ["int4", "sign", "topk:0.01"])
def test_deterministic_algorithms_can_be_asked_for(codec: str) -> None:
    ranks.run(2, train_deterministically, codec)
