"""A step of a model under DDP with one method, for the ranks of bench/ddp.py."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook,
    quantization_hooks,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fastcomm
from ddp_models import GivenGradients, Gradients, Shape, make_mnist, mnist_batches
from mnist_model import bf16_hook

# PowerSGD gets one bucket: over gloo it runs several at once in any order, and crashes.
_ONE_BUCKET_MEGABYTES = 1 << 20


def register(model: DistributedDataParallel, method: str) -> fastcomm.HookState | None:
    """Give a model the hook of a method; return fastcomm's state if it is ours. Collective."""
    if method == "none":
        return None
    if method == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method == "bf16":
        model.register_comm_hook(None, bf16_hook)
    elif method.startswith("powersgd"):
        matrix_rank = int(method.removeprefix("powersgd"))
        state = powerSGD_hook.PowerSGDState(None, matrix_rank, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif method.startswith("quantize"):
        hook = {
            "quantize_tensor": quantization_hooks.quantization_pertensor_hook,
            "quantize_channel": quantization_hooks.quantization_perchannel_hook,
        }[method]
        model.register_comm_hook(dist.group.WORLD, hook)
    else:
        return fastcomm.register(model, codec=method, warmup_steps=0)
    return None


def _bucket_megabytes(method: str) -> int | None:
    return _ONE_BUCKET_MEGABYTES if method.startswith("powersgd") else None


class GivenStep:
    """Steps of a model of given gradients with one method: backward passes, and nothing else."""

    def __init__(self, method: str, shapes: list[Shape], gradients: Gradients) -> None:
        self.module = GivenGradients(shapes, gradients)
        self.model = DistributedDataParallel(
            self.module,
            bucket_cap_mb=_bucket_megabytes(method),
            gradient_as_bucket_view=True,
            init_sync=False,  # the weights are the same already
        )
        self.state = register(self.model, method)

    def run(self, backward_seconds: float, synchronized: bool = True) -> float:
        """Run a backward pass that sleeps for so long; return how long it took on this rank."""
        self.module.backward_seconds = backward_seconds
        self.module.fill()
        with nullcontext() if synchronized else self.model.no_sync():
            loss = self.model()
            dist.barrier()
            start = time.perf_counter()
            loss.backward()
            return time.perf_counter() - start


class MnistStep:
    """Training steps of the MNIST CNN with one method."""

    def __init__(self, method: str, data_root: str | None) -> None:
        self.batches = mnist_batches(data_root, dist.get_rank(), dist.get_world_size())
        megabytes = _bucket_megabytes(method)
        self.model = DistributedDataParallel(make_mnist(), bucket_cap_mb=megabytes)
        self.state = register(self.model, method)
        # With a learning rate of 0 the weights stay as they are, on steps without synchronization
        # too: all methods do the same work.
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=0.9, nesterov=True
        )

    def run(self, synchronized: bool = True) -> float:
        """Train one step; return how long it took on this rank."""
        images, labels = next(self.batches)
        dist.barrier()
        start = time.perf_counter()
        with nullcontext() if synchronized else self.model.no_sync():
            loss = cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return time.perf_counter() - start
