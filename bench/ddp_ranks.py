"""One rank of bench/ddp.py: steps of one model with every method, in turns."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from ddp_models import Gradients, Shape, model_shapes
from ddp_results import DdpRow, hidden_ratio
from ddp_steps import GivenStep, MnistStep
from launch import write_rows
from measure import median, spread
from methods import peer_wire_bytes
from rank_checks import all_identical, slowest

# DDP rebuilds its buckets in the second step; then PowerSGD has steps of its own to begin with.
_WARMUP_STEPS = 2
_POWERSGD_WARMUP_STEPS = 5


class Contender:
    """A method, its models, and what was seen of it."""

    def __init__(
        self, method: str, settings: dict[str, Any], shapes: list[Shape], gradients: Gradients
    ) -> None:
        self.method = method
        self.backward_seconds = settings["backward_seconds"]
        self.given = GivenStep(method, shapes, gradients)
        self.mnist = (
            MnistStep(method, settings["data_root"]) if settings["model"] == "mnist" else None
        )
        self.state = (self.mnist or self.given).state
        self.seconds: list[float] = []
        self.seconds_communication: list[float] = []
        self.spent: dict[str, float] = {}  # by fastcomm, in all timed steps
        self.identical = False
        self.relative_error: float | None = None

    def step(self) -> float:
        """Run a whole step; return the seconds of this rank."""
        return self.given.run(self.backward_seconds) if self.mnist is None else self.mnist.run()

    def timed_step(self) -> None:
        """Run a whole step, and keep what was seen of it."""
        before = asdict(self.state.stats) if self.state else {}
        self.seconds.append(self.step())
        after = asdict(self.state.stats) if self.state else {}
        for key, value in after.items():
            self.spent[key] = self.spent.get(key, 0) + value - before[key]

    def clear_residuals(self) -> None:
        """Make a step that delivers all residuals, so that the next one's error is its own."""
        if self.state is not None:
            self.state.flush()
            self.communicate()

    def communicate(self) -> float:
        """Synchronize gradients that are there already; return the seconds of this rank."""
        return self.given.run(0.0)

    def compute(self) -> float:
        """Run a step without synchronization; return the seconds of this rank."""
        if self.mnist is None:
            return self.given.run(self.backward_seconds, synchronized=False)
        return self.mnist.run(synchronized=False)

    def warm_up(self) -> float:
        """Run the steps that are unlike the others; return what a turn takes from now on."""
        powersgd = self.method.startswith("powersgd")
        for _ in range(_POWERSGD_WARMUP_STEPS if powersgd else _WARMUP_STEPS):
            step = slowest([self.step()])[0]
            if self.mnist is not None:
                self.communicate()  # with a model of its own
        return 2 * step

    def check(self) -> None:
        """Check the gradients of the last step."""
        parameters = list((self.mnist or self.given).model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(gradients) == len(parameters), "a parameter has no gradient"
        self.identical = all_identical(gradients)
        if self.mnist is None and not self.method.startswith("powersgd"):
            self.relative_error = self.given.module.gradients.relative_error(gradients)


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure a model with every method; called on each rank, which all return the same rows."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    shapes = model_shapes(settings["model"], settings["megabytes"], settings["parameters"])
    gradients = Gradients(shapes, rank, world_size)
    contenders = [Contender(name, settings, shapes, gradients) for name in settings["methods"]]
    has_compute = settings["model"] == "mnist" or settings["backward_seconds"] > 0
    turn_seconds = sum(contender.warm_up() for contender in contenders)
    repetitions = int(settings["seconds_per_model"] / turn_seconds)
    repetitions = max(settings["fewest"], min(settings["most"], repetitions))

    compute_seconds: list[float] = []
    gc.collect()
    gc.freeze()  # what is there now is not looked at again while the clock runs
    for repetition in range(repetitions):
        if has_compute:
            compute_seconds.append(contenders[repetition % len(contenders)].compute())
        for contender in contenders:
            is_last = repetition == repetitions - 1
            if is_last and contender.mnist is None:
                contender.clear_residuals()
            contender.timed_step()
            if is_last:
                contender.check()
            if has_compute:
                contender.seconds_communication.append(contender.communicate())
    gc.unfreeze()
    compute = median(slowest(compute_seconds)) if has_compute else None
    for contender in contenders:
        contender.seconds = slowest(contender.seconds)
        contender.seconds_communication = slowest(contender.seconds_communication)
    plain = next((c.seconds for c in contenders if c.method == "none"), None)
    gradient_bytes = 4 * sum(math.prod(shape) for shape in shapes)
    return [
        asdict(_row(contender, compute, plain, gradient_bytes, settings))
        for contender in contenders
    ]


def _row(
    contender: Contender,
    compute: float | None,
    plain: list[float] | None,
    gradient_bytes: int,
    settings: dict[str, Any],
) -> DdpRow:
    world_size = dist.get_world_size()
    step = median(contender.seconds)
    communication = step if compute is None else median(contender.seconds_communication)
    spent = {key: value / len(contender.seconds) for key, value in contender.spent.items()}
    if contender.state is not None:
        wire_bytes: int | None = round(slowest([spent["wire_bytes"]])[0])
    else:
        peer = "gloo" if contender.method == "none" else contender.method
        wire_bytes = peer_wire_bytes(peer, gradient_bytes // 4, world_size)
    rate = settings["bits_per_second"]
    ideal = None if rate is None or wire_bytes is None else wire_bytes * 8 / rate
    bound = max(compute or 0.0, ideal or 0.0)
    is_bound_known = bound > 0 and (rate is None or ideal is not None)
    return DdpRow(
        model=settings["model"],
        method=contender.method,
        world_size=world_size,
        rate_bits_per_second=rate,
        gradient_bytes=gradient_bytes,
        backward_seconds=None if contender.mnist else contender.backward_seconds,
        repetitions=len(contender.seconds),
        seconds_step_median=step,
        seconds_step_min=min(contender.seconds),
        spread_ratio=spread(contender.seconds),
        seconds_compute=compute,
        seconds_communication=communication,
        hidden_ratio=None if compute is None else hidden_ratio(step, compute, communication),
        speedup_over_none=None
        if plain is None
        else median([p / s for p, s in zip(plain, contender.seconds, strict=True)]),
        wire_bytes_per_step=wire_bytes,
        ideal_wire_seconds=ideal,
        ratio_to_bound=step / bound if is_bound_known else None,
        seconds_encode=spent.get("seconds_encode"),
        seconds_decode=spent.get("seconds_decode"),
        seconds_wait=spent.get("seconds_wait"),
        relative_error=contender.relative_error,
        identical=contender.identical,
    )


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    dist.init_process_group("gloo")
    measured = measure(given)
    dist.barrier()
    gc.collect()  # DDP models and hook states are cycles; they end before their process group
    dist.destroy_process_group()
    if os.environ["RANK"] == "0":
        write_rows(given, measured)
