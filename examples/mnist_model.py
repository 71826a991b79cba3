"""The network of the example, and the ways in which its gradients can be synchronized."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from mnist_report import POWERSGD_PLAIN_STEPS, is_powersgd, powersgd_rank


class MnistCnn(nn.Module):
    """Two convolutions and two linear layers, 1.2 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ReLU()
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.1), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.25), nn.Linear(128, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of normalised (samples, 1, 28, 28) images."""
        logits: torch.Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def bf16_hook(
    state: None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Run PyTorch's bf16 hook, which by its own name DDP accepts with NCCL only."""
    return default_hooks.bf16_compress_hook(state, bucket)  # type: ignore[arg-type]


def set_gradient_sync(model: DistributedDataParallel, codec: str, algorithm: str) -> Any | None:
    """Choose how the model's gradients are synchronized; return fastcomm's state where it is it."""
    if codec == "none":
        return None
    if codec == "fp16-hook":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif codec == "bf16-hook":
        model.register_comm_hook(None, bf16_hook)
    elif is_powersgd(codec):
        matrix_rank = powersgd_rank(codec)
        state = powerSGD_hook.PowerSGDState(None, matrix_rank, POWERSGD_PLAIN_STEPS)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    else:
        import fastcomm

        return fastcomm.register(model, codec=codec, algorithm=algorithm)
    return None
