"""The recipes of docs/choosing_a_codec.md train with all forms of PyTorch's optimizers."""

import math
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import fastcomm
import ranks
from training import CLASSES, backward, loss_of, mlp

NUM_STEPS = 80
FORMS: list[dict[str, Any]] = [{}, {"foreach": True}, {"fused": True}]
OPTIMIZERS: dict[str, Any] = {
    "SGD": {"lr": 0.05, "momentum": 0.9},
    "Adam": {"lr": 0.004},
    "AdamW": {"lr": 0.004},
}
# With AdamW, what sends little starts dense.
RECIPES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "int4": {},
    "sign": {"warmup_steps": 10},
    "topk:0.05": {"warmup_steps": 20},
}


def final_losses(optimizer_name: str, form: dict[str, Any]) -> dict[str, float]:
    """Return the loss after training with each recipe."""
    losses = {}
    for codec, options in RECIPES.items():
        model = DistributedDataParallel(mlp(), gradient_as_bucket_view=True)
        fastcomm.register(model, codec, **options)
        make = getattr(torch.optim, optimizer_name)
        optimizer = make(model.parameters(), **OPTIMIZERS[optimizer_name], **form)
        for step in range(NUM_STEPS):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
        with torch.no_grad():
            unseen = [float(loss_of(model, NUM_STEPS + i)) for i in range(8)]
        losses[codec] = sum(unseen) / len(unseen)
    return losses


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_recipes_train_as_far_as_float32(optimizer_name: str, form: dict[str, Any]) -> None:
    for losses in ranks.run(2, final_losses, optimizer_name, form):
        learned = math.log(CLASSES) - losses["fp32"]
        assert learned > 0.8, "float32 does not learn this"
        assert losses["int4"] == pytest.approx(losses["fp32"], abs=0.05 * learned)
        for codec in ("sign", "topk:0.05"):
            assert losses[codec] <= losses["fp32"] + 0.15 * learned
