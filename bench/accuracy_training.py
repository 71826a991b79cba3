"""One run of bench/accuracy.py: a model trained by virtual ranks in this process.

Everything but the codec is the same for all codecs at a given seed: initial weights, the order of
the data, and each rank's dropout.
"""

from __future__ import annotations

import ast
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import fastcomm
from accuracy_tasks import RECIPES, Batch, Task, load_task

Row = dict[str, Any]
Report = Callable[[int], None]  # is told how many steps are done

# An option of this benchmark, not of HookState's constructor: whether to call the method.
_FOLLOW = "follow_learning_rate"
# Bytes per step after the warm-up are the mean of so many steps at the end.
_LAST_STEPS = 10


@dataclass(frozen=True)
class Job:
    """The settings of a run; two runs with equal ones do the same."""

    task: str
    optimizer: str
    world_size: int
    codec: str  # with the hook's options: name@option=value,...
    learning_rate: float
    seed: int
    steps: int
    batch_size_per_rank: int
    amp: bool = False


class DivergedError(Exception):
    """The training cannot go on, or has led nowhere."""


def split_commas(text: str) -> list[str]:
    """Split at the commas outside of braces, so that a policy may be a dictionary."""
    return re.split(r",(?![^{]*\})", text)


def parse_codec(text: str) -> tuple[str, dict[str, Any]]:
    """Return the codec's name and the hook's options of ``name@option=value,...``.

    Raises:
        ValueError: if that is not what it looks like.
    """
    name, at, listed = text.partition("@")
    options: dict[str, Any] = {}
    for item in split_commas(listed) if at else []:
        option, equals, value = item.partition("=")
        if not option.isidentifier() or not equals or not value:
            raise ValueError(f"{text!r}: {item!r} is not of the form option=value")
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[option] = value  # a name, as in algorithm=ring
    return name, options


def simulate(model: nn.Module, world_size: int, codec: str) -> fastcomm.Simulation:
    """Return the ranks that synchronize the model's gradients, with a codec and its options."""
    name, options = parse_codec(codec)
    options.pop(_FOLLOW, None)
    return fastcomm.Simulation(model, world_size, codec=name, **options)


def make_optimizer(job: Job, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer; SGD has no momentum of its own if the hook already has one."""
    if job.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), job.learning_rate)
    if parse_codec(job.codec)[1].get("momentum"):
        return torch.optim.SGD(model.parameters(), job.learning_rate)
    return torch.optim.SGD(model.parameters(), job.learning_rate, momentum=0.9, nesterov=True)


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the peak in a step: a rise for a tenth of the run, then a parabola."""
    done, rising = (step + 1) / (steps + 1), 0.1
    left = (1 - done) / (1 - rising)
    return done / rising if done < rising else left * left


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Return after how many steps to evaluate: evenly, and early in a run a few times more."""
    evenly = {round(steps * part / evaluations) for part in range(1, evaluations + 1)}
    early = {round(steps / evaluations / part) for part in (2, 4)}
    return (evenly | early) - {0}


class Run:
    """A run, from its first step to its last."""

    def __init__(self, job: Job, task: Task) -> None:
        self._job = job
        self._task = task
        torch.manual_seed(job.seed)
        self._model = task.build_model()
        self._simulation = simulate(self._model, job.world_size, job.codec)
        self._optimizer = make_optimizer(job, self._model)
        if parse_codec(job.codec)[1].get(_FOLLOW):
            self._simulation.follow_learning_rate(self._optimizer)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_share(step, job.steps)
        )
        self._evaluate_at = evaluation_steps(job.steps, RECIPES[job.task].evaluations)
        self.wire_bytes: list[int] = []  # sent by a rank up to each step
        self.curve: list[Row] = []

    def train(self, report: Report) -> None:
        """Take all steps.

        Raises:
            DivergedError: as soon as a loss or a parameter is not finite.
        """
        for step, batch in enumerate(self._batches()):
            loss = self._step(step, batch)
            self.wire_bytes.append(self._simulation.stats.wire_bytes)
            if not math.isfinite(loss):
                raise DivergedError(f"the training loss of step {step} was {loss}")
            if step + 1 in self._evaluate_at:
                self._check_parameters(step)
                self.curve.append(self._evaluation(step + 1))
            report(step + 1)

    @property
    def raw_bytes(self) -> int:
        """What an uncompressed ring would have sent from a rank so far."""
        return int(self._simulation.stats.raw_bytes)

    def _batches(self) -> Iterator[Batch]:
        """Yield the samples of all ranks for each step, epoch after epoch in another order."""
        size = self._job.batch_size_per_rank * self._job.world_size
        generator = torch.Generator().manual_seed(self._job.seed)
        order = torch.empty(0, dtype=torch.long)
        for _ in range(self._job.steps):
            if len(order) < size:
                order = torch.randperm(self._task.num_samples, generator=generator)
            yield self._task.batch(order[:size])
            order = order[size:]

    def _step(self, step: int, batch: Batch) -> float:
        """Let each rank compute its gradients, average them, and take a step; return the loss."""
        job = self._job
        self._model.train()
        loss_sum = 0.0
        shares = zip(*(part.chunk(job.world_size) for part in batch), strict=True)
        for rank, (inputs, targets) in enumerate(shares):
            # Every rank and step its own dropout, whatever random numbers a codec has drawn.
            torch.manual_seed((job.seed * 1_000_003 + step) * 1_009 + rank)
            loss = self._loss(self._forward(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            self._simulation.collect(rank)
            loss_sum += loss.item()
        self._simulation.synchronize()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        return loss_sum / job.world_size

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._job.amp):
            logits: torch.Tensor = self._model(inputs)
        return logits.float()

    @staticmethod
    def _loss(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
        return cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)

    def _check_parameters(self, step: int) -> None:
        for name, parameter in self._model.named_parameters():
            if not parameter.isfinite().all():
                raise DivergedError(f"{name} was not finite after step {step}")

    @torch.inference_mode()
    def _evaluation(self, step: int) -> Row:
        self._model.eval()
        correct = count = 0
        loss = 0.0
        for inputs, targets in self._task.test_batches:
            logits = self._forward(inputs)
            correct += int((logits.argmax(-1) == targets).sum())
            loss += self._loss(logits, targets, "sum").item()
            count += targets.numel()
        return {
            "step": step,
            "wire_bytes": self.wire_bytes[-1],
            "raw_bytes": self.raw_bytes,
            "accuracy_percent": 100 * correct / count,
            # JSON has no infinity; losses that large are found by the next step.
            "loss_nats": loss / count if math.isfinite(loss) else None,
        }


def train(job: Job, data_root: Path | None, report: Report) -> list[Row]:
    """Train; return the rows of the curve, and last the row of the run.

    The figures of a run that diverged are those up to there.
    """
    start = time.perf_counter()
    task = load_task(job.task, data_root)
    run = Run(job, task)
    divergence: str | None = None
    try:
        run.train(report)
        _check_metric(job, task, run.curve[-1])
    except DivergedError as error:
        divergence = str(error)
    steps = len(run.wire_bytes)
    last = min(_LAST_STEPS, steps)
    before = run.wire_bytes[-last - 1] if last < steps else 0
    raw_bytes = run.raw_bytes / steps
    wire_bytes, late_wire_bytes = run.wire_bytes[-1] / steps, (run.wire_bytes[-1] - before) / last
    figures: Row = {"diverged": divergence is not None, "divergence": divergence}
    for key, best in (("accuracy_percent", max), ("loss_nats", min)):
        values = [row[key] for row in run.curve if row[key] is not None]
        complete = steps == job.steps and len(values) == len(run.curve)
        figures[f"final_{key}"] = values[-1] if values and complete else None
        figures[f"best_{key}"] = best(values) if values else None
    run_row: Row = {
        "benchmark": "accuracy",
        **asdict(job),
        "steps_taken": steps,
        **figures,
        "wire_bytes_per_step": wire_bytes,
        "wire_bytes_per_step_after_warmup": late_wire_bytes,
        "raw_bytes_per_step": raw_bytes,
        "ratio": raw_bytes / wire_bytes if wire_bytes else None,
        "ratio_after_warmup": raw_bytes / late_wire_bytes if late_wire_bytes else None,
        "seconds": time.perf_counter() - start,
    }
    curve = [{"benchmark": "accuracy_curve", **asdict(job), **row} for row in run.curve]
    return [*curve, run_row]


def _check_metric(job: Job, task: Task, last: Row) -> None:
    metric = RECIPES[job.task].metric
    value = last[metric.name]
    if value is None or not metric.is_as_good(value, task.chance):
        found = "not finite" if value is None else f"{value:.4g}"
        raise DivergedError(f"the final {metric.name} is {found}, no better than {task.chance:.3g}")
