"""Small models under DDP, made-up batches, and what a hook was given."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # torch's stubs lack it
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from ledger import conservation_error
from promises import is_rotated

FEATURES = 60
CLASSES = 10


def mlp(width: int = 150, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return the same small model on every rank: large and small matrices of odd sizes, biases."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, width, bias=bias),
        nn.ReLU(),
        nn.Linear(width, 97, bias=bias),
        nn.ReLU(),
        nn.Linear(97, CLASSES, bias=bias),  # 970 elements: below the default min_compress_elements
    ).to(dtype)


def batch(step: int, rank: int | None = None, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's inputs and labels; the labels follow from the inputs by a fixed rule."""
    rank = dist.get_rank() if rank is None else rank
    generator = torch.Generator().manual_seed(100 * step + rank)
    inputs = torch.randn(rows, FEATURES, generator=generator)
    rule = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(5))
    return inputs, (inputs @ rule).argmax(dim=1)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of this rank's batch."""
    inputs, labels = batch(step)
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(inputs.to(dtype)).float(), labels)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the gradients by parameter name, without DDP's ``module.`` prefix."""
    return {
        name.removeprefix("module."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def backward(model: nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Return the gradients of one step from zero; the parameters stay as they are."""
    model.zero_grad()
    loss_of(model, step).backward()  # type: ignore[no-untyped-call]
    return gradients(model)


def local_gradients(model: DistributedDataParallel, step: int) -> dict[str, torch.Tensor]:
    """Return the gradients of this rank's batch alone."""
    # A copy: DDP's hooks on the parameters would take part even in the module's own backward.
    return backward(copy.deepcopy(model.module), step)


def residuals(state: fastcomm.HookState) -> dict[str, torch.Tensor]:
    """Return this rank's residuals by parameter name."""
    found: dict[str, torch.Tensor] = state.state_dict()["residuals"]
    return {name: residual.reshape(-1) for name, residual in found.items()}


def conserving_step(model: DistributedDataParallel, state: fastcomm.HookState, step: int) -> float:
    """Do one backward pass; return the worst violation of conservation by any parameter."""
    world_size = state.process_group.size()
    mine = local_gradients(model, step)
    before = residuals(state)
    averaged = backward(model, step)
    after = residuals(state)
    zeros = {name: torch.zeros(gradient.numel()) for name, gradient in mine.items()}
    assert mine.keys() == averaged.keys()
    assert after.keys() == (mine.keys() if state.codec.loses_bits else set())
    arguments = [
        (
            averaged[name].flatten().double() * world_size,
            mine[name].flatten(),
            before.get(name, zeros[name]),
            after.get(name, zeros[name]),
        )
        for name in mine
    ]
    if is_rotated(state.codec.name):  # blocks hold several parameters
        delivered, gradient, held, left = (torch.cat(p) for p in zip(*arguments, strict=True))
        return conservation_error(delivered, gradient, held, left, block=gradient.numel())
    return max(conservation_error(*of_parameter) for of_parameter in arguments)


@dataclass
class Recorder:
    """A hook state that notes which parameters are in the buckets, then compresses them."""

    state: fastcomm.HookState
    steps: list[list[list[torch.Tensor]]] = field(default_factory=list)
    futures: list[torch.futures.Future[torch.Tensor]] = field(default_factory=list)
    starts_step: bool = True

    def layout(self, step: int) -> list[list[tuple[int, ...]]]:
        """Return the shapes of the parameters in each bucket of a step."""
        return [[tuple(p.shape) for p in bucket] for bucket in self.steps[step]]


def recording_hook(recorder: Recorder, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Compress a bucket and remember it."""
    if recorder.starts_step:
        recorder.steps.append([])
        recorder.futures.clear()
    recorder.starts_step = bucket.is_last()
    recorder.steps[-1].append(bucket.parameters())
    recorder.futures.append(fastcomm.compress_hook(recorder.state, bucket))
    return recorder.futures[-1]


def register_recorded(model: DistributedDataParallel, codec: str, **options: Any) -> Recorder:
    """Do what fastcomm.register does, with a note of every bucket; by default without warm-up."""
    options = {"warmup_steps": 0, **options}
    state = fastcomm.HookState(codec, process_group=model.process_group, **options)
    recorder = Recorder(state)
    recorder.state.attach(model)
    model.register_comm_hook(recorder, recording_hook)
    return recorder
